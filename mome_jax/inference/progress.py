"""How far the segmentation of a scan is, counted in windows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mome_jax.inference import sliding_window


class Progress:
  """Tells of every batch of windows before it is predicted; a `sliding_window.Watch`.

  Args:
    predict: that of the segmenter, or another watch, which sees the same.
    told: called with the number of windows that were asked about, and of all of the scan. What it
      raises ends the segmentation.
  """

  def __init__(
    self,
    predict: Callable[[np.ndarray], Any] | sliding_window.Watch,
    told: Callable[[int, int], object],
  ):
    self._inner = predict
    self._told = told
    self._done = self._all = 0

  def begin(self, windows: sliding_window.Windows) -> None:
    """See `sliding_window.Watch`."""
    self._done, self._all = 0, sum(map(len, windows.planes.values()))
    if not callable(self._inner):
      self._inner.begin(windows)

  def predict(self, batch: np.ndarray, corners: Sequence[sliding_window.Corner]) -> Any:
    """See `sliding_window.Watch`."""
    self._told(self._done, self._all)
    self._done += len(corners)
    if callable(self._inner):
      return self._inner(batch)
    return self._inner.predict(batch, corners)
