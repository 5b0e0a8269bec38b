"""Masks of a slice as closed contours, and back.

Coordinates are (column, row) in voxels, whole numbers at the centres of voxels.
"""

from collections.abc import Sequence

import numpy as np

_DIGITS = 4  # of a voxel; so that round-off of mm decides nothing
_INSET = 0.005  # voxels


def trace(mask: np.ndarray) -> list[np.ndarray]:
  """The outlines of a mask: one closed contour for each of its pieces.

  They run half-way between the centres of voxels in the mask and out of it, where marching squares
  puts them (W.E. Lorensen and H.E. Cline, 1987), and cut the corners of the voxels: a piece loses
  half a voxel's area. So no contour comes near a centre, touches another one or crosses itself, and
  `rasterise` gives the same mask back. Holes are joined to their outline by a channel without
  width, there and back along one line between the centres (the keyhole technique of DICOM, PS3.3
  C.8.8.6.3).

  At last each point moves inwards by a two-hundredth of a voxel: rounded to whole voxels, as
  readers that fill with OpenCV do, it falls on the border of the mask and not beyond it.

  Args:
    mask: (rows, columns) bool; pieces that only share a corner are separate.

  Returns:
    (N, 2) float64 for each piece, the last point joined to the first.
  """
  import contourpy

  padded = np.pad(mask, 1).astype(np.float64)
  generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
  pieces = []
  # Of a mask, everything from one half to two is inside.
  for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
    outline, *holes = (points[a : b - 1] - 1 for a, b in zip(offsets, offsets[1:], strict=False))
    # From the top down: what lies above a hole is part of the outline by then.
    for hole in sorted(holes, key=lambda ring: ring[:, 1].min()):
      outline = _join(outline, hole)
    pieces.append(_inset(_without_midpoints(outline), mask))
  return pieces


def _join(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
  """An outline with a hole as a keyhole: up from beside the hole's top to what is above it."""
  top = hole[:, 1].min()
  # Of the hole's vertices between two columns, one at the end of its uppermost line: nothing of
  # the hole is above it.
  beside = np.flatnonzero((hole[:, 1] == top + 0.5) & (hole[:, 0] % 1 == 0.5))
  near = np.roll(hole[:, 1] == top, 1) | np.roll(hole[:, 1] == top, -1)
  start = next(i for i in beside if near[i])
  x, y = hole[start]
  ends = np.roll(outline, -1, 0)
  crossing = (outline[:, 0] - x) * (ends[:, 0] - x) < 0  # level, and half-way between its ends
  heights = np.where(crossing, (outline[:, 1] + ends[:, 1]) / 2, outline[:, 1])
  hit = crossing | (outline[:, 0] == x)
  heights = np.where(hit & (heights < y), heights, -np.inf)
  at = int(heights.argmax())
  gate = np.array([[x, heights[at]]])
  ring = np.roll(hole, -start, 0)
  return np.concatenate([outline[: at + 1], gate, ring, ring[:1], gate, outline[at + 1 :]])


def _without_midpoints(ring: np.ndarray) -> np.ndarray:
  """A ring without the points on straight lines; where it turns back it keeps them."""
  ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
  ahead, behind = np.roll(ring, -1, 0) - ring, ring - np.roll(ring, 1, 0)
  cross = ahead[:, 0] * behind[:, 1] - ahead[:, 1] * behind[:, 0]
  return ring[(cross != 0) | ((ahead * behind).sum(1) < 0)]


def _inset(ring: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """A ring whose points are moved towards the voxels of the mask that they lie beside."""
  padded = np.pad(mask, 1).astype(np.float64)
  low, high = np.floor(ring).astype(int) + 1, np.ceil(ring).astype(int) + 1
  at = lambda x, y: padded[y[:, 1], x[:, 0]]
  # Of the voxels around a point, two of which are one where a coordinate is whole.
  across = at(high, low) + at(high, high) - at(low, low) - at(low, high)
  down = at(low, high) + at(high, high) - at(low, low) - at(high, low)
  return ring + _INSET * np.sign(np.stack([across, down], -1))


def rasterise(rings: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
  """The voxels whose centre an odd number of contours holds: the even-odd rule.

  A centre on a contour counts as inside at its left and upper border, and as outside at its right
  and lower one: what two structures share belongs to one of them, and areas are right on average.

  Args:
    rings: (N, 2) floats each, closed: the last point is joined to the first; they may lie partly
      or wholly beyond the slice, be keyholes, cross themselves and each other.
    shape: rows and columns.

  Returns:
    (rows, columns) bool.
  """
  rows, columns = shape
  toggles = np.zeros((rows, columns + 1), np.int32)
  for ring in rings:
    points = np.round(np.asarray(ring, np.float64), _DIGITS)
    ends = np.roll(points, -1, 0)
    swap = points[:, 1] > ends[:, 1]
    low, high = np.where(swap[:, None], ends, points), np.where(swap[:, None], points, ends)
    first = np.clip(np.ceil(low[:, 1]), 0, rows).astype(int)
    last = np.clip(np.ceil(high[:, 1]), 0, rows).astype(int)  # beyond it
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (high - low)[edge]
    x = low[edge, 0] + (row - low[edge, 1]) * slope[:, 0] / slope[:, 1]
    column = np.clip(np.ceil(np.round(x, _DIGITS)), 0, columns).astype(int)
    np.add.at(toggles, (row, column), 1)
  return np.cumsum(toggles, 1)[:, :columns] % 2 == 1
