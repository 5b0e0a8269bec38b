import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from input_pipeline.anatomy import IGNORE_CODE
from input_pipeline.batches.deform import deform


@pytest.mark.parametrize('shape', [(7, 5, 6), (40, 30, 41)])  # one slab, and several
@pytest.mark.parametrize('shifted', [False, True])
def test_equals_what_scipy_reads_there(shape, shifted):
  rng = np.random.default_rng(0)
  image = rng.integers(-1024, 3000, (70, 75, 80)).astype(np.int16)
  label = rng.choice([0, 6, 201, IGNORE_CODE], image.shape).astype(np.uint8)
  matrix = Rotation.from_euler('xyz', (20, -10, 15), degrees=True).as_matrix() * 0.8
  origin = np.array(image.shape) / 2 - matrix @ (np.array(shape) / 2)
  shifts = rng.uniform(-3, 3, (3, *shape)).astype(np.float32) if shifted else None
  at = np.einsum('ij,jabc->iabc', matrix, np.indices(shape)) + origin[:, None, None, None]
  at = at if shifts is None else at + shifts
  before = image.copy(), label.copy()
  patch, codes = deform(image, label, matrix, origin, shifts, shape)
  assert (patch.dtype, codes.dtype) == (np.float32, np.uint8)
  expected = ndimage.map_coordinates(image, at, order=1, output=np.float32)
  np.testing.assert_allclose(patch, expected, atol=0.01)
  np.testing.assert_array_equal(codes, ndimage.map_coordinates(label, at, order=0))
  for array, old in zip((image, label), before, strict=True):
    np.testing.assert_array_equal(array, old)


def test_of_two_equally_near_voxels_the_upper():
  label = np.arange(8, dtype=np.uint8).reshape(8, 1, 1).repeat(2, 1).repeat(2, 2)
  image = label.astype(np.int16) * 100
  patch, codes = deform(image, label, np.eye(3), np.array([0.5, 0, 0]), None, (6, 1, 1))
  np.testing.assert_array_equal(codes.ravel(), [1, 2, 3, 4, 5, 6])
  np.testing.assert_array_equal(patch.ravel(), [50, 150, 250, 350, 450, 550])
