"""The bricks that were decoded last, kept in memory."""

import collections
import threading
from collections.abc import Callable, Sequence

import numpy as np

Brick = tuple[np.ndarray, ...]  # the first of its arrays holds a number a voxel
Reader = Callable[[Sequence[int]], Sequence[Brick]]  # record numbers -> the brick of each


class BrickCache:
  """The bricks decoded last, up to a number of bytes; safe to use from several threads.

  Attributes:
    voxels_read: of all bricks decoded so far.

  Args:
    readers: of each store.
    megabytes: bound on the arrays kept.
  """

  def __init__(self, readers: Sequence[Reader], megabytes: float):
    self._readers, self._megabytes = readers, megabytes
    self._free = int(megabytes * 2**20)
    self.voxels_read = 0
    self._kept: collections.OrderedDict[tuple[int, int], Brick] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __reduce__(self):
    return BrickCache, (self._readers, self._megabytes)  # another process starts an empty one

  def get(self, store: int, records: Sequence[int]) -> list[Brick]:
    """The bricks of a store; those that are not kept are read, all at once.

    One request for all matters where each costs a round trip to a bucket.
    """
    held: dict[int, Brick] = {}
    with self._lock:
      for record in records:
        if (store, record) in self._kept:
          self._kept.move_to_end((store, record))
          held[record] = self._kept[store, record]
    missing = [record for record in dict.fromkeys(records) if record not in held]
    if missing:
      # Not under the lock: two threads may read the same brick, but none waits for another's disk.
      bricks = self._readers[store](missing)
      held.update(zip(missing, bricks, strict=True))
      with self._lock:
        for record, brick in zip(missing, bricks, strict=True):
          self._keep((store, record), brick)
    return [held[record] for record in records]

  def _keep(self, key: tuple[int, int], brick: Brick) -> None:
    self.voxels_read += brick[0].size
    if key not in self._kept:
      self._kept[key] = brick
      self._free -= _size(brick)
    while self._free < 0:
      self._free += _size(self._kept.popitem(last=False)[1])


def _size(brick: Brick) -> int:
  return sum(array.nbytes for array in brick)
