"""Reads PyTorch files by PyTorch's own loader of tensors, which runs no code from the file."""

import argparse
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mome_jax.errors import install
from mome_jax.weights.errors import WeightsError


def load(path: pathlib.Path) -> Any:
  """What `torch.save` wrote, with numpy arrays for tensors.

  Raises:
    WeightsError: if PyTorch is not installed, or the file is missing, damaged, of another format or
      holds objects that are neither tensors nor plain values.
  """
  try:
    import torch
  except ImportError as error:
    told = f'{path}: reading PyTorch files needs PyTorch; {install("torch")}'
    raise WeightsError(told) from error
  try:
    path.open('rb').close()
  except OSError as error:
    raise WeightsError(f'{path}: cannot be read ({error.strerror or error})') from error
  try:
    with torch.serialization.safe_globals(_harmless()):
      loaded = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # whatever a damaged file makes the loader trip over
    reason = str(error).rpartition('WeightsUnpickler error: ')[2].strip()
    if name := re.search(r'GLOBAL (\S+)|allowlisted.* got (\S+)', reason):
      raise WeightsError(
        f'{path}: holds more than tensors ({name[1] or name[2]}), which is not read: it could '
        'run any code; where you trust the file, save its state dict alone with torch.save'
      ) from error
    reason = reason.split('\n')[0].partition('. ')[0][:200] or type(error).__name__
    raise WeightsError(
      f'{path}: not a PyTorch checkpoint, or a damaged one ({reason}); fetch it again'
    ) from error
  return _to_numpy(loaded, torch)


def _harmless() -> list[Any]:
  """What training scripts store beside the tensors, and that does nothing when it is made."""
  scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
  numbers = (np.dtype(kind) for kind in ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', '?'))
  return [argparse.Namespace, scalar, np.dtype, *(type(number) for number in numbers)]


def _to_numpy(value: Any, torch: Any) -> Any:
  if isinstance(value, torch.Tensor):
    value = value.detach()
    if value.dtype == torch.bfloat16:
      return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()
  if isinstance(value, Mapping):
    return {key: _to_numpy(item, torch) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_to_numpy(item, torch) for item in value]
  return value
