"""Numbers of a segmented scan."""

import numpy as np

from input_pipeline.ct import volume
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import class_statistics
from mome_jax.predict.request import Target


def test_two_lone_voxels_in_a_line_are_two_components():
  array = np.zeros((6, 5, 7), np.float32)
  winner = np.zeros(array.shape, np.uint8)
  winner[2, 3, [2, 4]] = 1
  segmentation = Segmentation(('spleen',), winner, np.zeros((*array.shape, 1), np.uint8))
  scan = volume.to_canonical(array, np.eye(4))
  (row,) = class_statistics.statistics(scan, segmentation, [Target(3, 'spleen', 'spleen', '')])
  assert (row['components'], row['volume_ml']) == (2, 0.002)
