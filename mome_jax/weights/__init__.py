"""Published checkpoints -> our variables."""

from collections.abc import Mapping

import numpy as np

from mome_jax.weights import files, t5
from mome_jax.weights.mapping import WeightsError

SOURCES = {'t5': t5.convert}


def convert(source: str, state_dict: Mapping[str, np.ndarray]) -> dict:
  """Our variables of a published checkpoint.

  Args:
    source: a key of `SOURCES`.
    state_dict: tensors by name, as arrays (or CPU tensors of PyTorch).

  Returns:
    {'params': ...} of float32 numpy arrays.

  Raises:
    ValueError: if the source is unknown.
    WeightsError: if the checkpoint has an unused key, lacks a variable or has another shape; the
      message lists every one.
  """
  if source not in SOURCES:
    raise ValueError(f'source {source!r}; known: {", ".join(SOURCES)}')
  arrays = {key: np.asarray(value) for key, value in state_dict.items()}
  return SOURCES[source](files.strip_module(arrays))


__all__ = ['SOURCES', 'WeightsError', 'convert']
