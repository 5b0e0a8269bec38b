"""Iterators over batches that are made in the background."""

import weakref
from collections.abc import Callable, Iterator

import numpy as np

Batch = dict[str, np.ndarray]


class Batches:
  """An iterator that ends what works for it before the interpreter goes.

  NOTE: threads of tf.data that wait for Python while it shuts down would hang the process for ever.

  Attributes:
    close: ends the threads or processes behind it; also called when it is forgotten and at exit.

  Args:
    iterator: over the batches.
    close: ends what `iterator` holds; must not refer to the new object.
    voxels_read: see the property.
  """

  def __init__(
    self,
    iterator: Iterator[Batch],
    *,
    close: Callable[[], object],
    voxels_read: Callable[[], int],
  ):
    self._running = [iterator]
    self._voxels_read = voxels_read
    self.close = weakref.finalize(self, _end, self._running, close)

  def __iter__(self):
    return self

  def __next__(self) -> Batch:
    return next(self._running[0])

  @property
  def voxels_read(self) -> int:
    """Voxels of all bricks decoded so far.

    Those of patches that are still to come are counted by tf.data, which shares one cache.
    """
    return self._voxels_read()


def _end(running: list, close: Callable[[], object]) -> None:
  close()
  running.clear()
