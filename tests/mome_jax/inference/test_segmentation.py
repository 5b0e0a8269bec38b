"""Which class owns a voxel, and masks on the scan's own grid."""

import numpy as np
from threshold import decide

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
