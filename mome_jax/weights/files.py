"""Checkpoint files -> numpy arrays by name: safetensors and PyTorch, whole or sharded."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mome_jax.errors import reading
from mome_jax.weights import torch_file
from mome_jax.weights.errors import WeightsError

_NAMES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
_NOTHING = r'(?!)'  # matches no name


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
  """The checkpoint file that `path` means: itself, or the one in a folder of a published model.

  Raises:
    WeightsError: if there is none.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return path
  for name in _NAMES:
    if (path / name).is_file():
      return path / name
  expected = f'a folder with {", ".join(_NAMES)}' if path.is_dir() else 'a file or folder'
  raise WeightsError(f'{path}: no checkpoint there; expected {expected}')


def shards(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of a checkpoint: those that an `.index.json` lists, else the one given."""
  if not path.name.endswith('.index.json'):
    return [path]
  with reading(path, WeightsError):
    index = json.loads(path.read_text(encoding='utf-8'))
  places = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
    raise WeightsError(f'{path}: has no "weight_map"; fetch the index of the shards again')
  return [path.parent / name for name in sorted(set(places.values()))]


def read_tensors(path: pathlib.Path, but: str = _NOTHING) -> dict[str, np.ndarray]:
  """Every tensor of a checkpoint by its name.

  A PyTorch file may hold the state dict itself or under `net`, `state_dict` or `model`, as training
  scripts write it; a prefix `module.` on every name (DataParallel) is cut.

  Args:
    path: `.safetensors`, a PyTorch file of any suffix (for which PyTorch must be installed), or the
      `.index.json` of a sharded one.
    but: regular expression of whole names that are not wanted: of safetensors they are never read,
      of a PyTorch file forgotten, so that only one shard is ever held whole.

  Returns:
    Arrays with the types of the file; bfloat16 as `ml_dtypes.bfloat16`.

  Raises:
    WeightsError: if the file, or a shard of it, is missing, damaged, of another format or holds no
      state dict.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f'{path}: no such checkpoint file')
  if path.name.endswith('.index.json'):
    return {k: v for shard in shards(path) for k, v in read_tensors(shard, but).items()}
  if path.suffix == '.safetensors':
    return _read_safetensors(path, but)
  state = _state_dict(torch_file.load(path))
  if state is None:
    raise WeightsError(
      f'{path}: holds no state dict (tensors by name); give a checkpoint of weights'
    )
  return strip_module({k: v for k, v in state.items() if not re.fullmatch(but, k)})


def strip_module(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same tensors without the `module.` that DataParallel puts before every name."""
  if all(key.startswith('module.') for key in state):
    return {key.removeprefix('module.'): value for key, value in state.items()}
  return dict(state)


def _read_safetensors(path: pathlib.Path, but: str) -> dict[str, np.ndarray]:
  import safetensors

  try:
    with reading(path, WeightsError), safetensors.safe_open(path, framework='np') as file:
      names = [name for name in file.offset_keys() if not re.fullmatch(but, name)]
      return {name: file.get_tensor(name) for name in names}
  except safetensors.SafetensorError as error:
    raise WeightsError(f'{path}: not a safetensors file, or a damaged one ({error})') from error


def _state_dict(loaded: Any) -> dict[str, np.ndarray] | None:
  if not isinstance(loaded, Mapping):
    return None
  for name in ('net', 'state_dict', 'model'):
    if isinstance(loaded.get(name), Mapping):
      return _state_dict(loaded[name])
  tensors = {key: value for key, value in loaded.items() if isinstance(value, np.ndarray)}
  return tensors or None
