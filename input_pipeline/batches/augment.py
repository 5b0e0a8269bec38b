"""Augmentations of CT patches: stateless numpy, all randomness from the generator passed in.

Mirror images, which also swap the labels of paired organs, are made by `mirror`.
"""

import types
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.ct import resample
from input_pipeline.errors import UserError, suggest


class AugmentError(UserError):
  """A field that does not exist or a value that cannot be; the message names it."""


# `p_*` is the probability of each; HU changes stay small because CT numbers are calibrated.
DEFAULTS: Mapping = types.MappingProxyType(
  {
    'enabled': True,
    'p_mirror': 0.0,  # left-right mirror images; off, as no patient has the liver on the left
    'p_rotate': 0.3,
    'max_degrees': 15.0,  # about each axis
    'p_zoom': 0.3,
    'zoom': (0.85, 1.25),  # above 1 enlarges the anatomy
    'p_intensity': 0.3,
    'intensity_scale': 0.1,  # HU are multiplied by 1 +- this
    'intensity_shift': 20.0,  # HU added, +- this
    'p_noise': 0.15,
    'noise': 30.0,  # HU, largest standard deviation
    'p_blur': 0.1,
    'blur': (0.5, 1.0),  # voxels, standard deviation
    'p_low_resolution': 0.1,
    'low_resolution': (1.0, 2.0),  # voxels of the patch per voxel of the simulated scan
    'p_gamma': 0.2,
    'gamma': (0.7, 1.5),  # exponent, after the HU windows
  }
)


def complete(config: Mapping | None) -> dict:
  """A configuration with the defaults filled in.

  Args:
    config: some of the fields of DEFAULTS; {'enabled': False} or None turns everything off.

  Raises:
    AugmentError: if a field is unknown or a probability is outside 0..1.
  """
  config = {'enabled': False} if config is None else dict(config)
  unknown = sorted(set(config) - set(DEFAULTS))
  if unknown:
    raise AugmentError(
      f'data.augment has no field {unknown[0]!r}; {suggest(unknown[0], sorted(DEFAULTS))}'
    )
  config = {**DEFAULTS, **config}
  for name, value in config.items():
    if name.startswith('p_'):
      if not 0 <= value <= 1:
        raise AugmentError(f'data.augment.{name} is {value}; expected a probability, 0 to 1')
      config[name] = value if config['enabled'] else 0.0
  return config


def draw_matrix(
  rng: np.random.Generator, config: Mapping, spacing: Sequence[float]
) -> np.ndarray | None:
  """A random rotation and zoom.

  Args:
    rng: source of randomness.
    config: from `complete`.
    spacing: (3,) mm; the rotation happens in mm, so that anisotropic voxels do not shear anatomy.

  Returns:
    (3, 3) float64, offset from the patch centre (voxels) -> offset in the scan (voxels), or None
    where neither was drawn.
  """
  from scipy.spatial.transform import Rotation  # slow to import

  rotate, zoom = rng.random(2) < (config['p_rotate'], config['p_zoom'])
  degrees = rng.uniform(-config['max_degrees'], config['max_degrees'], 3)
  factor = rng.uniform(*config['zoom'])
  if not (rotate or zoom):
    return None
  matrix = Rotation.from_euler('xyz', degrees, degrees=True).as_matrix() if rotate else np.eye(3)
  if zoom:
    matrix = matrix / factor
  mm = np.asarray(spacing, float)
  return matrix * mm / mm[:, None]


def change_hu(rng: np.random.Generator, image: np.ndarray, config: Mapping) -> np.ndarray:
  """Blur, low resolution, scale and shift, noise: in the order in which a scanner makes them.

  Args:
    rng: source of randomness.
    image: (D, H, W) float32 HU; left as it is.
    config: from `complete`.

  Returns:
    (D, H, W) float32 HU.
  """
  from scipy import ndimage  # slow to import

  blur, coarse, intensity, noise = rng.random(4) < (
    config['p_blur'],
    config['p_low_resolution'],
    config['p_intensity'],
    config['p_noise'],
  )
  if blur:
    image = ndimage.gaussian_filter(image, rng.uniform(*config['blur']), truncate=3.0)
  if coarse:
    factor = (rng.uniform(*config['low_resolution']),) * 3
    small = resample.resample(image, (1, 1, 1), factor, order=1)
    image = resample.resample(small, factor, (1, 1, 1), order=1, target_shape=image.shape)
  if intensity:
    scale = 1 + rng.uniform(-1, 1) * config['intensity_scale']
    image = image * np.float32(scale) + np.float32(rng.uniform(-1, 1) * config['intensity_shift'])
  if noise:
    deviation = np.float32(rng.uniform(0, config['noise']))
    image = image + deviation * rng.standard_normal(image.shape, np.float32)
  return image


def change_contrast(rng: np.random.Generator, image: np.ndarray, config: Mapping) -> np.ndarray:
  """One random exponent for all channels.

  Args:
    rng: source of randomness.
    image: (D, H, W, C) float32 in [0, 1].
    config: from `complete`.

  Returns:
    (D, H, W, C) float32 in [0, 1].
  """
  if rng.random() >= config['p_gamma']:
    return image
  return image ** np.float32(rng.uniform(*config['gamma']))
