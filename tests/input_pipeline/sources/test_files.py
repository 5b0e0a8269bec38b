"""A scan and its label map: in the same place, however they are stored."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from input_pipeline import sources
from input_pipeline.sources import files

AXES = [
  ''.join(axes)
  for order in itertools.permutations(('RL', 'AP', 'SI'))
  for axes in itertools.product(*order)
]
AFFINE = np.array([[3.0, 0.1, 0, -20], [-0.1, 3, 0.2, 11], [0, -0.2, 4, 5], [0, 0, 0, 1]])


def save(path, array, axes='RAS', affine=AFFINE):
  image = nib.Nifti1Image(array, affine)
  turn = orientations.ornt_transform(
    orientations.io_orientation(affine), orientations.axcodes2ornt(axes)
  )
  nib.save(image.as_reoriented(turn), path)
  return path


@pytest.fixture
def pair(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
  label = rng.integers(0, 2, image.shape).astype(np.uint8)
  return save(tmp_path / 'image.nii', image, 'LPS'), tmp_path / 'label.nii', label


@pytest.mark.filterwarnings('error:.*origin')
def test_a_label_map_may_be_stored_in_any_axis_order(pair):
  image, path, label = pair
  assert len(AXES) == 48
  for axes in AXES:
    scan = files.load_nifti(image, save(path, label, axes), {1: 'liver'})
    np.testing.assert_array_equal(scan.codes, 6 * label)


@pytest.mark.parametrize('axes', ['SLA', 'RAS', 'PIR'])
def test_another_place_is_refused_whatever_the_axes(axes, pair):
  image, path, label = pair
  with pytest.raises(sources.SourceError, match=rf'shape .* along {axes}, but image\.nii \(5, 6'):
    files.load_nifti(image, save(path, label[:, :, :-1], axes), {1: 'liver'})
  flipped = AFFINE @ np.diag([1, -1, 1, 1])
  with pytest.raises(sources.SourceError, match='label.nii: axes .* mm apart; the header of one'):
    files.load_nifti(image, save(path, label, axes, flipped), {1: 'liver'})
  moved = AFFINE.copy()
  moved[0, 3] += 4
  with pytest.raises(sources.SourceError, match=f'axes {axes}, .*but image.nii LPS.* 4.0 mm apart'):
    files.load_nifti(image, save(path, label, axes, moved), {1: 'liver'})


def test_another_origin_of_the_same_axes_is_told(pair):
  image, path, label = pair
  moved = AFFINE.copy()
  moved[0, 3] += 4
  with pytest.warns(UserWarning, match='its origin is 4.0 mm from that of image.nii'):
    files.load_nifti(image, save(path, label, 'LPS', moved), {1: 'liver'})
