"""Headers that lack directions, contradict themselves, or tell sizes that no scan has."""

import warnings

import nibabel as nib
import numpy as np
import pytest

from input_pipeline.ct import volume
from tests.input_pipeline.ct.test_volume import affine_of, patch, random_image, save


def test_axes_without_directions_count_as_right_anterior_superior(tmp_path):
  array = random_image()
  path = patch(save(tmp_path / 'in.nii', array), 252, bytes(4))  # qform_code and sform_code
  with pytest.warns(UserWarning, match='axes taken for right, anterior, superior: sides not che'):
    scan = volume.read_image(path, assume_spacing=(1, 2, 4))
  np.testing.assert_array_equal(scan.array, array)
  np.testing.assert_array_equal(scan.geometry.affine[:3, :3], np.diag((1, 2, 4)))
  volume.write_nifti(tmp_path / 'out.nii', scan.array, scan.geometry, np.int16)
  out = nib.load(tmp_path / 'out.nii')
  np.testing.assert_array_equal(out.affine, nib.load(path).affine)
  np.testing.assert_array_equal(np.asarray(out.dataobj), array)


def test_an_sform_that_pixdim_contradicts_is_told(tmp_path):
  path = save(tmp_path / 'in.nii', random_image())  # voxels of 0.75 x 1.25 x 3 mm
  patch(path, 80, np.float32((0.7, 1.25, 3)).tobytes())
  with pytest.warns(
    UserWarning, match=r'voxels of 0.75 x 1.25 x 3 mm by sform, of 0.7 x 1.25 x 3 mm by pixdim; usi'
  ):
    scan = volume.read_image(path)
  np.testing.assert_array_equal(scan.geometry.affine, affine_of('RAS'))
  patch(path, 80, np.float32((0.755, 1.25, 3)).tobytes())  # within 1 %
  with warnings.catch_warnings():
    warnings.filterwarnings('error', message='.*by pixdim')
    volume.read_image(path)


def test_an_identity_beside_another_pixdim_has_lost_the_sides(tmp_path):
  path = save(tmp_path / 'in.nii', random_image(), np.eye(4))
  np.testing.assert_array_equal(volume.read_image(path).spacing, (1, 1, 1))
  patch(path, 80, np.float32((0.7, 0.7, 5)).tobytes())
  with pytest.raises(
    volume.VolumeError, match=r'are the identity, pixdim is 0.7 x 0.7 x 5 mm: sides unknown'
  ):
    volume.read_image(path)


def test_a_scan_longer_than_three_metres_is_refused():
  with pytest.raises(volume.VolumeError, match=r'in: is 6.4 m long \(64 voxels of 100 mm\); conv'):
    volume.to_canonical(np.zeros((64, 4, 4), np.int16), np.diag((100.0, 1, 1, 1)), name='in')
  volume.to_canonical(np.zeros((30, 4, 4), np.int16), np.diag((100.0, 1, 1, 1)))
