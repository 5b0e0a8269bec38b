"""The strict rule: every tensor is used or known to be useless, every variable is filled."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax
import numpy as np

from mome_jax.weights.errors import WeightsError


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dictionaries -> leaves by their path, such as 'backbone/encoder_0/conv_0/kernel'."""
  return flax.traverse_util.flatten_dict(tree, sep='/')


def fill(
  source: str,
  state: Mapping[str, np.ndarray],
  shapes: Mapping[str, Any],
  key_of: Callable[[str], str | None],
  *,
  ignore: Iterable[str] = (),
) -> dict[str, np.ndarray]:
  """Variables from a state dict.

  Args:
    source: names the structure in errors.
    state: tensors of the checkpoint by name.
    shapes: what has a `shape`, by the path of each variable to fill.
    key_of: path of a variable -> name of its tensor; None leaves the variable out.
    ignore: regular expressions of whole names that the network has no use for.

  Returns:
    float32 arrays by path.

  Raises:
    WeightsError: that lists every unused tensor, missing variable and different shape.
  """
  filled, problems, used = {}, [], set()
  for path, expected in shapes.items():
    key = key_of(path)
    if key is None:
      continue
    used.add(key)
    if key not in state:
      problems.append(f'missing: {key}, for {path} {tuple(expected.shape)}')
      continue
    value = to_flax(state[key], path, len(expected.shape))
    if value.shape != tuple(expected.shape):
      problems.append(
        f'shape: {key} is {state[key].shape}, which makes {value.shape}; {path} has '
        f'{tuple(expected.shape)}'
      )
      continue
    filled[path] = value
  useless = re.compile('|'.join(f'(?:{pattern})' for pattern in ignore) or r'(?!)')
  problems += [
    f'unused: {key} {state[key].shape}'
    for key in state
    if key not in used and not useless.fullmatch(key)
  ]
  if problems:
    raise WeightsError(
      f'the checkpoint is no {source} ({len(problems)} problems):\n  ' + '\n  '.join(problems)
    )
  return filled


def to_flax(value: np.ndarray, path: str, rank: int) -> np.ndarray:
  """A PyTorch tensor in the layout of a Flax variable, float32.

  Kernels move from (out, in, ...) to (..., in, out), those of transposed convolutions (their path
  holds 'upsample') from (in, out, ...); a 1x1x1 kernel becomes a matrix where `rank` is 2.

  Args:
    value: the tensor.
    path: of the variable; only a `kernel` changes its layout.
    rank: of the variable.
  """
  if path.endswith('kernel'):
    if value.ndim == 5:
      order = (2, 3, 4, 0, 1) if 'upsample' in path else (2, 3, 4, 1, 0)
      value = value.transpose(order)
      if rank == 2 and value.shape[:3] == (1, 1, 1):
        value = value[0, 0, 0]
    elif value.ndim == 2:
      value = value.T
  return np.ascontiguousarray(value, np.float32)
