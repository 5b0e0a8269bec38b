"""Contours of masks: exact at voxel centres for other readers too, holes as keyholes, areas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.path import Path
from scipy import ndimage

from input_pipeline.ct import contours

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def inside(ring, shape):
  """The even-odd rule of matplotlib, at the centres of voxels."""
  rows, columns = np.mgrid[: shape[0], : shape[1]]
  points = np.stack([columns.ravel(), rows.ravel()], -1)
  return Path(np.vstack([ring, ring[:1]]), closed=True).contains_points(points).reshape(shape)


def area(ring):
  x, y = ring.T
  return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_contours_give_their_mask_back(mask):
  rings = contours.trace(mask)
  np.testing.assert_array_equal(contours.rasterise(rings, mask.shape), mask)
  # Each alone is a piece with its holes, so that union, even-odd and XOR of rings say the same.
  masks = [inside(ring, mask.shape) for ring in rings]
  np.testing.assert_array_equal(np.sum(masks, 0) if masks else 0 * mask, mask)
  parts, number = ndimage.label(mask)  # 4-connected
  assert len(rings) == number
  for alone in masks:
    assert len(np.unique(parts[alone])) == 1
  # Marching squares cut half a voxel from each outline, and add it for each hole.
  holes = sum(ndimage.label(np.pad(parts != n + 1, 1, constant_values=True), np.ones((3, 3)))[1] - 1
              for n in range(number))  # fmt: skip
  points = np.concatenate([*rings, np.zeros((0, 2))])
  expected = mask.sum() - 0.5 * number + 0.5 * holes
  assert sum(map(area, rings)) == pytest.approx(expected, abs=0.01 + 0.02 * len(points))
  # Points that a reader rounds to whole voxels lie on the mask.
  columns, rows = np.rint(points).astype(int).T
  assert mask[rows, columns].all()


def test_by_hand():
  mask = np.zeros((3, 4), bool)
  mask[1, 1:3] = True
  [ring] = contours.trace(mask)
  corners = {(0.505, 1), (1, 0.505), (2, 0.505), (2.495, 1), (2, 1.495), (1, 1.495)}
  assert set(map(tuple, ring.round(6).tolist())) == corners and len(ring) == 6


def test_a_hole_is_a_keyhole():
  mask = np.ones((5, 5), bool)
  mask[2, 2] = False
  [ring] = contours.trace(mask)
  pairs = [tuple(map(tuple, pair)) for pair in zip(ring.tolist(), np.roll(ring, -1, 0).tolist(),
                                                   strict=True)]  # fmt: skip
  channel = [(a, b) for a, b in pairs if (b, a) in pairs]
  assert len(channel) == 2 and abs(channel[0][0][0] - channel[0][1][0]) < 0.02
  assert not contours.rasterise([ring], mask.shape)[2, 2]


@given(arrays.arrays(float, st.tuples(st.integers(3, 12), st.just(2)),
                     elements=st.floats(-3, 12, width=32)))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_ring_is_filled_as_matplotlib_does(ring):
  ring = np.round(ring, 2) + np.array([0.00313, 0.00271])  # no centre on an edge
  np.testing.assert_array_equal(contours.rasterise([ring], (9, 8)), inside(ring, (9, 8)))


def test_borders_through_centres_are_half_open():
  square = np.array([[1, 1], [4, 1], [4, 3], [1, 3]])
  mask = contours.rasterise([square], (6, 6))
  assert mask.sum() == 6 == area(square) and mask[1:3, 1:4].all()
  for shift in (1e-7, -1e-7):  # round-off decides nothing
    np.testing.assert_array_equal(contours.rasterise([square + shift], (6, 6)), mask)
  beside = contours.rasterise([square + [3, 0]], (6, 8))
  assert not (beside[:, :6] & mask).any()  # what they share is of one of them


def test_separate_holes_and_what_lies_beyond_the_slice():
  outer = np.array([[-3.5, -3.5], [20.5, -3.5], [20.5, 20.5], [-3.5, 20.5]])
  hole = np.array([[1.5, 1.5], [3.5, 1.5], [3.5, 4.5], [1.5, 4.5]])
  expected = np.ones((6, 7), bool)
  expected[2:5, 2:4] = False
  np.testing.assert_array_equal(contours.rasterise([outer, hole], (6, 7)), expected)
  assert not contours.rasterise([hole + 50, hole - 50], (6, 7)).any()
  assert not contours.rasterise([], (6, 7)).any()
