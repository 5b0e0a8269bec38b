"""Connected components against SciPy: every small pattern, lattices, thin and empty arrays."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from input_pipeline.ct.components import components

SHAPES = [s for s in itertools.product(range(1, 13), repeat=3) if np.prod(s) <= 12]
CUBE = np.ones((3, 3, 3))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_every_pattern_of_up_to_12_voxels(shape):
  n = int(np.prod(shape))
  masks = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool).reshape(-1, *shape)
  labels, numbers = zip(*map(components, masks), strict=True)
  # One call of SciPy's for all of them, one above the other with a gap.
  tall = np.pad(masks, [(0, 0), (0, 1), (0, 0), (0, 0)])
  expected, _ = ndimage.label(tall.reshape(-1, *shape[1:]), CUBE)
  expected = expected.reshape(tall.shape)[:, :-1].reshape(-1, n)
  rows = np.sort(np.concatenate([np.zeros((len(masks), 1), int), expected], 1))
  np.testing.assert_array_equal(numbers, (np.diff(rows) > 0).sum(1))
  labels = np.stack(labels).reshape(-1, n)
  np.testing.assert_array_equal(labels.max(1), numbers)
  np.testing.assert_array_equal(labels > 0, expected > 0)
  same = lambda x: x[:, :, None] == x[:, None, :]  # whether two voxels have one number
  np.testing.assert_array_equal(same(labels), same(expected))


@pytest.mark.parametrize(
  'shape', [(3, 3, 3), (63, 1, 1), (1, 31, 29), (5, 5, 5), (2, 3, 41), (33, 31, 29)], ids=str
)
@pytest.mark.parametrize('order', ['C', 'F'])
def test_as_many_lone_voxels_as_fit(shape, order):
  mask = np.zeros(shape, bool, order)
  mask[::2, ::2, ::2] = True
  labels, number = components(mask)
  assert number == mask.sum()
  np.testing.assert_array_equal(np.sort(labels[mask]), np.arange(1, number + 1))


@pytest.mark.parametrize('shape', [(0, 3, 3), (3, 0, 0), (4, 5, 6)], ids=str)
def test_nothing_has_no_components(shape):
  labels, number = components(np.zeros(shape, bool))
  assert number == 0 and labels.shape == shape and not labels.any()
  np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=1), [labels.size])


def test_a_part_of_an_array_of_numbers():
  codes = np.random.default_rng(0).integers(0, 4, (9, 20, 17), np.uint8) // 3 * 7
  view = codes[1:8:2, ::-1, 3]
  labels, number = components(view[:, :, None])
  expected, count = ndimage.label(view, np.ones((3, 3)))
  assert number == count
  pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
  assert len(pairs) == count + 1
