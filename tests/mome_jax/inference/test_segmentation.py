"""Which class owns a voxel, and masks on the scan's own grid."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from threshold import decide

from mome_jax.inference.packed_mask import PackedMask
from mome_jax.inference.segmentation import Segmentation

NAMES = ('liver', 'right kidney', 'liver tumor', 'spleen')


def voxels(*rows):
  """Each row is the logits of one voxel."""
  return np.array(rows, np.float32)[:, None, None]


def segmentation(logits, names=NAMES):
  over, winner = decide(logits, names)
  return Segmentation(names, winner, over)


def test_the_organ_gives_way_to_its_tumor_and_the_most_probable_wins():
  result = segmentation(
    voxels(
      [3, -1, 1, -1],  # liver and its tumor: the tumor
      [3, 2, -1, -1],  # liver more probable than kidney
      [-1, -1, 2, -1],  # a tumor where no liver was seen
      [3, 2, 1, -1],  # liver is dropped for its tumor, then the kidney beats the tumor
      [-1, -2, -1, -3],
      [1, -1, -1, 1],  # a tie goes to the lower index
    )
  )
  np.testing.assert_array_equal(result.winner.ravel(), [3, 1, 3, 2, 0, 1])
  np.testing.assert_array_equal(result.mask('liver').ravel(), [1, 1, 0, 0, 0, 1])
  np.testing.assert_array_equal(result.mask('liver tumor').ravel(), [1, 0, 1, 0, 0, 0])
  np.testing.assert_array_equal(result.mask('right kidney').ravel(), [0, 0, 0, 1, 0, 0])
  assert not result.mask('spleen').any()


def test_more_than_eight_classes_and_free_text():
  names = tuple(f'structure {i}' for i in range(11))
  logits = np.full((11, 1, 1, 11), -1, np.float32)
  logits[np.arange(11), 0, 0, np.arange(11)] = 1
  result = segmentation(logits, names)
  for i, name in enumerate(names):
    np.testing.assert_array_equal(result.mask(name).ravel(), np.arange(11) == i)


def test_more_classes_than_a_byte_can_count():
  names = tuple(f'structure {i}' for i in range(300))
  logits = np.full((300, 1, 1, 300), -1, np.float32)
  logits[np.arange(300), 0, 0, np.arange(300)] = 1
  result = segmentation(logits, names)
  assert result.winner.dtype == np.uint16
  assert result.mask('structure 299').ravel().nonzero()[0].tolist() == [299]
  assert result.boxes['structure 299'] == (slice(299, 300), slice(0, 1), slice(0, 1))


def test_a_label_map_of_some_of_the_rivals():
  result = segmentation(
    voxels(
      [3, -1, 1, -1],  # the tumor, in the liver
      [3, -1, -1, -1],
      [-1, -1, 2, -1],  # a tumor outside
      [-1, 2, -1, -1],
    )
  )
  painted = lambda **labels: result.label_map(
    {name.replace('_', ' '): label for name, label in labels.items()}
  ).ravel()
  np.testing.assert_array_equal(painted(liver=6), [6, 6, 0, 0])  # its tumor is liver too
  np.testing.assert_array_equal(painted(liver=6, liver_tumor=27), [27, 6, 27, 0])
  np.testing.assert_array_equal(painted(spleen=1, right_kidney=300), [0, 0, 0, 300])
  assert result.label_map({'right kidney': 300}).dtype == np.uint16
  assert result.label_map({}).dtype == np.uint8


def test_free_masks_are_painted_where_nothing_is_the_first_one_wins():
  logits = voxels([3, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1])
  over, winner = decide(logits, NAMES)
  free = {name: PackedMask(winner.shape) for name in ('a', 'b')}
  free['a'].add(np.s_[0:3, 0:1, 0:1], np.array([1, 1, 0], bool)[:, None, None])
  free['b'].add(np.s_[1:3, 0:1, 0:1], np.array([1, 1], bool)[:, None, None])
  result = Segmentation(NAMES, winner, over, free=free)
  painted = lambda *names: result.label_map(
    {name: 6 if name == 'liver' else 200 + ord(name) - ord('a') for name in names}
  ).ravel()
  np.testing.assert_array_equal(painted('a', 'liver', 'b'), [6, 200, 201, 0])
  np.testing.assert_array_equal(painted('b', 'a'), [200, 201, 201, 0])
  np.testing.assert_array_equal(result.mask('b').ravel(), [0, 1, 1, 0])
  np.testing.assert_array_equal(result.mask('a', np.s_[1:3, 0, 0]), [1, 0])
  assert result.boxes['b'] == np.s_[1:3, 0:1, 0:1]


@given(arrays.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)), st.integers(1, 3))
def test_a_packed_mask_is_the_mask(mask, planes):
  packed = PackedMask(mask.shape)
  for first in range(0, len(mask), planes):
    part = mask[first : first + planes]
    packed.add((slice(first, first + len(part)), *map(slice, (0, 0), mask.shape[1:])), part)
  assert packed.shape == mask.shape
  np.testing.assert_array_equal(packed[...], mask)
  np.testing.assert_array_equal(packed[1:, ::-1], mask[1:, ::-1])
  if not mask.any():
    assert packed.box is None
    return
  where = np.argwhere(mask)
  assert packed.box == tuple(
    slice(int(low), int(high) + 1) for low, high in zip(where.min(0), where.max(0), strict=True)
  )
