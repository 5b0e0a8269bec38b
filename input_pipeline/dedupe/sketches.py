"""Which scans could be the same: a quick look at many pairs, before any is aligned voxel by voxel.

A sketch tells of each slice how tissue lies around the body's middle, on a grid that is folded
along both axes, so that mirroring does not change it. Two scans are compared in blocks of slices,
one of them at every offset of its blocks, either way up, where at least half of the shorter one
overlaps. One scan is compared with thousands by matrix products.
"""

from collections.abc import Sequence

import numpy as np

_CELL = 4  # voxels of the fingerprint's grid along a cell
_HALF = 6  # cells on one side of the middle
CHANNELS = 2 * _HALF**2
_BLOCK = 4  # slices
_ROWS = 1024  # scans compared at once
SIMILAR = 0.36  # copies of 29 patients, six kinds each: at most 0.294; others mostly more


def sketch(values: np.ndarray, body: np.ndarray) -> np.ndarray:
  """The sketch of a fingerprint.

  Args:
    values: (D, H, W) float32, HU relative to the body's median.
    body: (D, H, W) bool.

  Returns:
    (W, CHANNELS) float32: of each slice the mean values, in hundreds, and the share of body in each
    cell.
  """
  mask = body.astype(np.float32)
  total = np.maximum(mask.sum((0, 1)), 1)
  folds = [
    _fold((mask.sum(1 - axis) * np.arange(size)[:, None]).sum(0) / total, size)
    for axis, size in enumerate(body.shape[:2])
  ]
  cells = [np.einsum('xdw,dhw,yhw->wxy', folds[0], part, folds[1]) for part in (values / 100, mask)]
  return np.concatenate([c.reshape(len(c), -1) for c in cells], 1) / (2 * _CELL) ** 2


def _fold(middle: np.ndarray, size: int) -> np.ndarray:
  """(_HALF, size, W) float32: 1 where a voxel is in a cell, by its distance from the middle."""
  away = np.abs(np.arange(size)[:, None] - middle) // _CELL
  cell = np.minimum(away, _HALF - 1).astype(int)
  return (cell == np.arange(_HALF)[:, None, None]).astype(np.float32)


class Sketches:
  """Sketches of many scans, prepared for comparing each with the ones after it.

  Args:
    sketches: N arrays (W_i, CHANNELS).
  """

  def __init__(self, sketches: Sequence[np.ndarray]):
    self._sketches = sketches
    means = [_means(one) for one in sketches]
    self._length = np.array([len(one) for one in means], int)
    self._width = int(self._length.max(initial=1))
    self._table = np.zeros((2, len(means), self._width, CHANNELS), np.float32)  # either way up
    for number, one in enumerate(means):
      self._table[0, number, : len(one)] = one
      self._table[1, number, : len(one)] = one[::-1]

  def near(self, number: int) -> np.ndarray:
    """(M,) int64: the scans after `number` that may be the same, in order."""
    others = np.arange(number + 1, len(self._length))
    best = np.full(len(others), np.inf, np.float32)
    for offset in range(_BLOCK):
      query = self._sketches[number][offset:]
      if offset and len(query) < _BLOCK:
        break
      kernels = _kernels(_means(query), self._width)
      for start in range(0, len(others), _ROWS):
        part = slice(start, start + _ROWS)
        best[part] = np.minimum(best[part], self._distances(kernels, others[part]))
    return others[best < SIMILAR]

  def _distances(self, kernels: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """(R,) distances at the best alignment: root of squared differences over the mean squares."""
    length = self._length[rows]
    least = np.maximum(np.minimum(kernels['size'], length) // 2, 1)
    short = kernels['overlap'][:, length] < least
    ours = kernels['squares'][:, length]
    best = np.full(len(rows), np.inf, np.float32)
    for table in self._table:
      theirs = table[rows]
      cross = kernels['cross'] @ theirs.reshape(len(rows), -1).T
      total = ours + kernels['inside'] @ (theirs**2).sum(2).T
      ratio = (total - 2 * cross) / np.maximum(total / 2, 1e-6)
      ratio[short] = np.inf
      best = np.minimum(best, ratio.min(0))
    return np.sqrt(np.maximum(best, 0))


def _means(slices: np.ndarray) -> np.ndarray:
  """Means of blocks of slices; what is left at the end counts as a block if it is half one."""
  whole = len(slices) // _BLOCK
  parts = [slices[: whole * _BLOCK].reshape(whole, _BLOCK, CHANNELS).mean(1)]
  rest = slices[whole * _BLOCK :]
  if len(rest) * 2 >= _BLOCK or not whole:
    parts.append(rest.mean(0, keepdims=True))
  return np.concatenate(parts).astype(np.float32)


def _kernels(query: np.ndarray, width: int) -> dict[str, np.ndarray]:
  """What one scan brings to each shift (S): products, and sums up to each length of the other."""
  size = len(query)
  shifts = np.arange(-width + 1, size)[:, None]
  place = shifts + np.arange(width)  # (S, width): block of the query under each of the other
  inside = ((place >= 0) & (place < size)).astype(np.float32)
  shifted = query[np.clip(place, 0, size - 1)] * inside[..., None]
  upto = lambda values: np.pad(np.cumsum(values, 1), ((0, 0), (1, 0)))
  return {
    'size': np.array(size),
    'cross': shifted.reshape(len(shifts), -1),
    'inside': inside,
    'overlap': upto(inside),
    'squares': upto((shifted**2).sum(2)),
  }
