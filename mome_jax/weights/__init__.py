"""Published checkpoints -> our variables."""

from collections.abc import Mapping

import numpy as np

from mome_jax.errors import suggest
from mome_jax.weights.errors import WeightsError

_NETWORKS = 'universal_unet', 'universal_swin_unetr', 'monai_swin_unetr', 'monai_swin_vit'
SOURCES = (*_NETWORKS, 't5')
MERGING_ORDERS = 'cum', 'monai', 'monai_v2'  # of `models.backbones.swin`


def convert(source: str, state_dict: Mapping[str, np.ndarray], **options) -> dict:
  """Our variables of a published checkpoint.

  Args:
    source: 'universal_unet' and 'universal_swin_unetr' make a whole `MoME`; 'monai_swin_unetr' its
      backbone and 'monai_swin_vit' the encoder of it, under `backbone` too; 't5' a `TextEncoder`.
    state_dict: tensors by name, as arrays (or CPU tensors of PyTorch).
    options: `merging` for the two MONAI sources, see `networks.monai_swin_unetr`.

  Returns:
    {'params': ...} of float32 numpy arrays.

  Raises:
    WeightsError: if the source is unknown, or the checkpoint has an unused key, lacks a variable or
      has another shape; the message lists every one.
  """
  from mome_jax.weights import files, networks, t5

  if source not in SOURCES:
    raise WeightsError(f'source {source!r}; {suggest(source, SOURCES)}')
  state = files.strip_module({key: np.asarray(value) for key, value in state_dict.items()})
  if source == 't5':
    return t5.convert(state)
  return networks.SOURCES[source](state, **options).variables


__all__ = ['MERGING_ORDERS', 'SOURCES', 'WeightsError', 'convert']
