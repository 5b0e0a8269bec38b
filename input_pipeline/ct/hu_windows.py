"""HU windows: how Hounsfield units become the channels of a network's input."""

from collections.abc import Sequence

import numpy as np


def hu_windows(image: np.ndarray, windows: Sequence[Sequence[float]]) -> np.ndarray:
  """One channel for each window: 0 at and below its lower end, 1 at and above its upper one.

  Args:
    image: (...) float32 HU.
    windows: C pairs (low, high) of HU, low below high.

  Returns:
    (..., C) float32 in [0, 1].
  """
  low, high = np.asarray(windows, np.float32).reshape(-1, 2).T
  return np.clip((image[..., None] - low) / (high - low), 0, 1)
