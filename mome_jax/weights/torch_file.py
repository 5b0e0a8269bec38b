"""Reads the tensors of a PyTorch file, without PyTorch and without running code from the file.

`torch.save` writes a pickle, and a pickle may name any function to be called. Here every name but
those of tensors, storages and dictionaries stands for an object that swallows what it is given, so
that an optimizer or a training script's arguments inside a checkpoint are skipped, not executed.
"""

import collections
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from mome_jax.weights.mapping import WeightsError

_DTYPES = {
  'DoubleStorage': np.dtype('<f8'),
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('<i1'),
  'ByteStorage': np.dtype('<u1'),
  'BoolStorage': np.dtype('?'),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load(path: pathlib.Path) -> Any:
  """What `torch.save` wrote, with numpy arrays for tensors.

  Files of PyTorch 1.6 and later (zip archives) are mapped into memory and read on use; the older
  format is read whole. Objects that are neither tensors nor plain Python values become inert
  placeholders.

  Raises:
    WeightsError: if the file is missing, damaged or of another format.
  """
  path = pathlib.Path(path)
  try:
    if zipfile.is_zipfile(path):
      return _load_zip(path)
    return _load_legacy(path)
  except (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError, TypeError,
    AttributeError, ValueError, struct.error,
  ) as error:  # fmt: skip
    raise WeightsError(
      f'{path}: not a PyTorch checkpoint, or a damaged one ({error}); fetch it again'
    ) from error
  except OSError as error:
    raise WeightsError(f'{path}: cannot be read ({error.strerror or error})') from error


class _Inert:
  """Stands for an object of any other class."""

  def __init__(self, *args, **kwargs):
    pass

  def __call__(self, *args, **kwargs):
    return self

  def __setstate__(self, state):
    pass

  def __setitem__(self, key, value):
    pass

  def append(self, value):
    pass

  def extend(self, values):
    pass


class _Storage:
  """The flat data of one or more tensors; `read()` gives it as a one-dimensional array."""

  def __init__(self, read: Callable[[], np.ndarray]):
    self.read = read


def _rebuild_tensor(storage, offset, size, stride, *_):
  flat = storage.read()
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if min((offset, *size, *stride)) < 0 or (0 not in size and last >= flat.size):
    raise ValueError(f'a tensor of {tuple(size)} reaches outside its {flat.size} stored numbers')
  if 0 in size:
    return np.zeros(size, flat.dtype)
  strides = [step * flat.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False)


def _rebuild_parameter(data, *_):
  return data


_KNOWN = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch', 'Size'): tuple,
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
  """Resolves tensors and nothing else.

  Args:
    file: with the pickle.
    storage: (key, dtype, count) -> array of `count` numbers.
  """

  def __init__(self, file, storage: Callable[[str, np.dtype, int], np.ndarray]):
    super().__init__(file, encoding='utf-8')
    self._storage = storage

  def find_class(self, module: str, name: str):
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    return _KNOWN.get((module, name), _Inert)

  def persistent_load(self, pid):
    kind, dtype, key, _, count, *_ = pid
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      return _Inert()
    return _Storage(lambda: self._storage(key, dtype, count))


def _load_zip(path: pathlib.Path) -> Any:
  with zipfile.ZipFile(path) as archive:
    entries = {name.partition('/')[2]: name for name in archive.namelist()}
    order = archive.read(entries['byteorder']) if 'byteorder' in entries else b'little'
    if order != b'little':
      raise ValueError(f'written with byte order {order.decode()}; save it on a little-endian host')
    mapped = np.memmap(path, np.uint8, 'r')

    def storage(key, dtype, count):
      entry = archive.getinfo(entries[f'data/{key}'])
      if entry.compress_type != zipfile.ZIP_STORED:
        return np.frombuffer(archive.read(entry), dtype, count)
      start = entry.header_offset
      name, extra = struct.unpack('<HH', mapped[start + 26 : start + 30].tobytes())
      start += 30 + name + extra
      return mapped[start : start + count * dtype.itemsize].view(dtype)

    with archive.open(entries['data.pkl']) as file:
      return _Unpickler(file, storage).load()


def _load_legacy(path: pathlib.Path) -> Any:
  """Five pickles (magic number, protocol, platform, object, storage keys), then the raw storages.

  The object comes before the storages, so it is read twice: once for where each storage lies.
  """
  with path.open('rb') as file:
    if _Unpickler(file, None).load() != _LEGACY_MAGIC:
      raise ValueError('unknown magic number')
    _Unpickler(file, None).load()
    _Unpickler(file, None).load()
    begin = file.tell()
    dtypes = {}

    def note(key, dtype, count):
      dtypes[key] = dtype
      return np.zeros(count, dtype)

    _Unpickler(file, note).load()
    keys = _Unpickler(file, None).load()
    found = {}
    for key in keys:
      (count,) = struct.unpack('<q', file.read(8))
      if key not in dtypes:
        raise ValueError(f'storage {key} belongs to no tensor')
      found[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key], count)
    file.seek(begin)
    return _Unpickler(file, lambda key, dtype, count: found[key]).load()
