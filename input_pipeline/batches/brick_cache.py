"""The bricks that were decoded last, kept in memory."""

import collections
import threading
from collections.abc import Callable

import numpy as np


class BrickCache:
  """The bricks decoded last, up to a number of bytes; safe to use from several threads.

  Attributes:
    voxels_read: of all bricks decoded so far.

  Args:
    read: key -> arrays, the first of which holds a number a voxel.
    megabytes: bound on the arrays kept.
  """

  def __init__(self, read: Callable[[tuple], tuple[np.ndarray, ...]], megabytes: float):
    self._read = read
    self._free = int(megabytes * 2**20)
    self.voxels_read = 0
    self._kept: collections.OrderedDict[tuple, tuple[np.ndarray, ...]] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __call__(self, key: tuple) -> tuple[np.ndarray, ...]:
    """The arrays of that key, read where they are not kept."""
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
    # Not under the lock: two threads may read the same brick, but none waits for another's disk.
    arrays = self._read(key)
    with self._lock:
      self.voxels_read += arrays[0].size
      if key not in self._kept:
        self._kept[key] = arrays
        self._free -= _size(arrays)
      while self._free < 0:
        self._free += _size(self._kept.popitem(last=False)[1])
    return arrays


def _size(arrays: tuple[np.ndarray, ...]) -> int:
  return sum(array.nbytes for array in arrays)
