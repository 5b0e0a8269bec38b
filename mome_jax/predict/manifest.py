"""How results were made: versions, devices, model and timings, as one JSON object."""

import importlib.metadata
import platform
import sys

from mome_jax import __version__

_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy', 'nibabel', 'pydicom',
             'highdicom', 'orbax-checkpoint')  # fmt: skip


def versions() -> dict[str, str]:
  """Of the packages that results depend on, those that are installed."""
  found = {'mome-jax': __version__}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def environment() -> dict:
  """Python, platform, versions of packages and the command."""
  return {'python': platform.python_version(), 'platform': platform.platform(),
          'versions': versions(), 'command': sys.argv}  # fmt: skip


def describe(predictor) -> dict:
  """Where a `Predictor` came from, the SHA-256 of its parameters, its config and devices."""
  return {
    'checkpoint': {
      'path': predictor.path,
      'step': predictor.step,
      'sha256': predictor.fingerprint(),
    },
    'config': predictor.config.to_dict(),
    'devices': [f'{device.platform}:{device.id} {device.device_kind}' for device in
                predictor.devices],
  }  # fmt: skip
