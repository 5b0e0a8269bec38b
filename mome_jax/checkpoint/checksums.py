"""Checksums of arrays: whether storage gave back what was written.

Files of checkpoints carry none for the values of arrays; a flipped bit would train on. The sum of
an array is that of its 32-bit words, each times an odd number of its place, modulo 2^32: any change
of a single word is seen, others with a probability of 1 - 2^-32. It does not depend on how an array
is split over devices, nor on whether it was stored in bfloat16.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from input_pipeline.files import text_files
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.checkpoint.files import POSITION

FILE = 'checksums.json'  # of a model folder
_ARRAYS, _SELF = 'checksums', 'checksum'  # among the values of a training's checkpoint
_WORDS = 2**18  # summed at once: they stay in a core's cache
Sums = Mapping[str, int]


def of_tree(tree: Any) -> dict[str, int]:
  """Checksum of each array of a tree, by its path.

  Args:
    tree: of arrays of at most 32 bits, on any devices; where processes share them, all must call.

  Returns:
    Path, as 'model/stem/kernel' -> checksum.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
  arrays = [leaf for _, leaf in leaves]
  is_shared = [not getattr(array, 'is_fully_addressable', True) for array in arrays]
  shared = [array for array, is_one in zip(arrays, is_shared, strict=True) if is_one]
  of_shared = iter(jax.device_get(_of_arrays(shared)) if shared else ())
  return {  # no program is compiled for what this process has by itself
    name: int(next(of_shared)) if is_one else of_array(np.asarray(array))
    for name, array, is_one in zip(names, arrays, is_shared, strict=True)
  }


def of_array(array: np.ndarray) -> int:
  """Checksum of one array in this process's memory."""
  words = _host_words(array)
  total = 0
  for start in range(0, words.size, _WORDS):
    part = words[start : start + _WORDS]
    factors = np.arange(2 * start + 1, 2 * (start + part.size) + 1, 2, dtype=np.uint64)
    product = part * factors.astype(np.uint32)
    total += int(product.sum(dtype=np.uint64))
  return total % 2**32


def _host_words(array: np.ndarray) -> np.ndarray:
  if jnp.issubdtype(array.dtype, jnp.floating):
    return np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)
  return np.ascontiguousarray(array, np.int32).reshape(-1).view(np.uint32)


@jax.jit
def _of_arrays(arrays: list[jax.Array]) -> list[jax.Array]:
  return [_on_device(array) for array in arrays]


def _on_device(array: jax.Array) -> jax.Array:
  if jnp.issubdtype(array.dtype, jnp.floating):
    words = jax.lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32)
  else:
    words = jax.lax.bitcast_convert_type(array.astype(jnp.int32), jnp.uint32)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):  # not reshaped: that would gather what is split
    stride = math.prod(words.shape[axis + 1 :]) % 2**32
    place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
  return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def changed(tree: Any, sums: Sums | None) -> list[str]:
  """Paths of the arrays that are not what was written.

  Args:
    tree: as read.
    sums: from `of_tree`, as written; None where nobody noted them.
  """
  if sums is None:
    return []
  now = of_tree(tree)
  return sorted(name for name in now.keys() | sums.keys() if now.get(name) != sums.get(name))


def signed(values: Mapping[str, Any], sums: Mapping[str, Sums]) -> dict[str, Any]:
  """JSON values with the checksums of the items beside them, and one of all that."""
  values = {**values, _ARRAYS: sums}
  return {**values, _SELF: _of_json(values)}


def unsigned(values: Mapping[str, Any]) -> dict[str, Any]:
  """What `signed` was given."""
  return {name: value for name, value in values.items() if name not in (_ARRAYS, _SELF)}


def arrays(values: Mapping[str, Any]) -> Mapping[str, Sums]:
  """The checksums of the items beside `signed` values; empty where nobody noted them.

  Raises:
    ValueError: if the values are not what was written.
  """
  rest = {name: value for name, value in values.items() if name != _SELF}
  if values.get(_SELF, _of_json(rest)) != _of_json(rest):
    raise ValueError('its position in the data is not what was written')
  return values.get(_ARRAYS, {})


def _of_json(values: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def write(folder: epath.Path, params: Any) -> None:
  """Notes the checksums of a model folder's parameters in it."""
  (folder / FILE).write_text(json.dumps(of_tree(params), indent=1) + '\n', encoding='utf-8')


def read(params: epath.Path) -> Sums | None:
  """The checksums of parameters in a folder, None where nobody noted them.

  Args:
    params: `MODEL/params` or `WORKDIR/checkpoints/STEP/ema`.

  Raises:
    CheckpointError: if they are damaged.
  """
  file = params.parent / FILE
  training = not file.exists()
  if training:
    file = params.parent / POSITION
  if not file.exists():
    return None
  text = text_files.read_explained(file, CheckpointError)
  try:
    values = json.loads(text)
    if training:
      values = arrays(values).get(params.name)
    return None if values is None else {str(name): int(number) for name, number in values.items()}
  except (ValueError, AttributeError, TypeError) as error:
    raise CheckpointError(f'{file}: damaged ({error}); copy the model again') from error
