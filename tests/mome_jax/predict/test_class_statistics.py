"""Numbers of a segmented scan."""

import nibabel as nib
import numpy as np
import pytest

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


def test_a_mask_of_some_voxels_has_a_volume():
  """0 is that of an empty one."""
  array = np.zeros((6, 5, 7), np.float32)
  winner = np.zeros(array.shape, np.uint8)
  winner[2, 3, 2:4] = 1
  segmentation = Segmentation(('spleen',), winner, np.zeros((*array.shape, 1), np.uint8))
  scan = volume.to_canonical(array, np.diag([0.5, 0.5, 0.6, 1]))  # 0.15 mm3
  (row,) = class_statistics.statistics(scan, segmentation, [Target(3, 'spleen', 'spleen', '')])
  assert row['volume_ml'] == 0.0003


@pytest.mark.parametrize('kind', [nib.Nifti1Header, None])
def test_a_voxel_of_a_tilted_gantry_is_smaller_than_its_edges(kind):
  affine = np.diag([2.0, 2.0, 3.0, 1.0])
  affine[1, 2] = 3 * np.tan(np.radians(20))  # sheared: the edge between slices is longer
  array = np.zeros((6, 5, 7), np.float32)
  winner = np.ones(array.shape, np.uint8)
  segmentation = Segmentation(('spleen',), winner, np.zeros((*array.shape, 1), np.uint8))
  scan = volume.to_canonical(array, affine, header=kind and nib.Nifti1Image(array, affine).header)
  (row,) = class_statistics.statistics(scan, segmentation, [Target(3, 'spleen', 'spleen', '')])
  assert row['volume_ml'] == pytest.approx(array.size * 12 / 1000, abs=1e-3)
