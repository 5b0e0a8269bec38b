"""NRRD and MetaImage in and out, and the folder of TotalSegmentator, of whole predictions."""

import json
import os
import sys

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from threshold import save_scan

from mome_jax.evaluate import score_folders
from mome_jax.predict import formats
from mome_jax.predict.request import PredictError

AFFINE = np.array([[0, -7.0, 0, 90], [8, 0, 0, -80], [0, 0, 9, 10], [0, 0, 0, 1]])


def options(*names):
  return formats.make_options([*names])


@pytest.fixture
def both(tmp_path):
  """The same scan as NIfTI and as NRRD, written by ITK."""
  nifti = save_scan(tmp_path / 'a.nii.gz', affine=AFFINE)
  sitk.WriteImage(sitk.ReadImage(nifti), tmp_path / 'b.nrrd')
  return nifti, tmp_path / 'b.nrrd'


def test_a_scan_is_segmented_alike_in_any_format(both, run, tmp_path):
  kinds = ('nrrd', 'mha', 'seg_nrrd')
  results = run(*both, options=options(*kinds))
  assert [result.status for result in results] == ['ok', 'ok']
  out = tmp_path / 'out'
  expected = nib.load(out / 'a_seg.nii.gz')
  assert expected.get_fdata().max() > 0
  other = nib.load(out / 'b_seg.nii.gz')
  np.testing.assert_allclose(other.affine, expected.affine, atol=1e-4)
  np.testing.assert_array_equal(other.dataobj, expected.dataobj)
  scan = sitk.ReadImage(both[1])
  for name in ('b_seg.nrrd', 'b_seg.mha', 'b_seg.seg.nrrd'):
    image = sitk.ReadImage(out / name)
    np.testing.assert_allclose(image.GetDirection(), scan.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), scan.GetOrigin(), atol=1e-4)
    stored = sitk.GetArrayFromImage(image).transpose()
    np.testing.assert_array_equal(stored > 0, np.asarray(expected.dataobj) > 0)
  _, header = nrrd.read(str(out / 'b_seg.seg.nrrd'))
  assert header['Segment0_Name'] == 'liver' and 'Segment1_Name' not in header
  # What lies there three times is one case to `score`, and no scan to `predict`.
  [liver] = [
    row
    for row in score_folders.score_folders(out, out).rows
    if row['case'] == 'a' and row['class'] == 'liver'
  ]
  assert liver['dice'] == 1
  again = run(tmp_path, options=options())
  assert {result.case for result in again} == {'a', 'b'}


def test_segments_of_slicer_are_scored_by_name(both, run, tmp_path):
  run(both[0], options=options('seg_nrrd'))
  references = tmp_path / 'references'
  references.mkdir()
  stored, header = nrrd.read(str(tmp_path / 'out' / 'a_seg.seg.nrrd'), index_order='F')
  header['Segment0_Name'], header['Segment0_LabelValue'] = 'Liver', '7'
  filled = np.argwhere(stored)
  low, high = filled.min(0), filled.max(0) + 1  # cut to its extent, as Slicer saves it
  part = stored[tuple(map(slice, low, high))] * 7
  header['space origin'] = header['space origin'] + low @ np.asarray(header['space directions'])
  nrrd.write(str(references / 'a.seg.nrrd'), part, header, index_order='F')
  scores = score_folders.score_folders(tmp_path / 'out', references)
  assert scores.failed == []
  [liver] = scores.rows
  assert (liver['class'], liver['dice']) == ('liver', 1)


def test_the_folder_of_totalsegmentator(both, run, tmp_path):
  prompts = ['liver', 'spleen', 'left kidney', 'postcava', 'left parotid', 'an odd thing']
  run(both[0], options=options('totalsegmentator'), prompts=prompts, force=True)
  folder = tmp_path / 'out' / 'a_totalsegmentator'
  names = ['liver', 'spleen', 'kidney_left', 'inferior_vena_cava', 'parotid_gland_left',
           '200_an_odd_thing']  # fmt: skip
  assert sorted(os.listdir(folder)) == sorted([*(f'{n}.nii.gz' for n in names), 'statistics.json'])
  mask = nib.load(folder / 'liver.nii.gz')
  np.testing.assert_allclose(mask.affine, AFFINE)
  voxels = np.asarray(mask.dataobj)
  assert set(np.unique(voxels)) == {0, 1}
  statistics = json.loads((folder / 'statistics.json').read_text())
  assert list(statistics) == names
  assert statistics['liver']['volume'] == pytest.approx(voxels.sum() * 7 * 8 * 9)  # mm3
  inside = np.asarray(nib.load(both[0]).dataobj)[voxels > 0]
  assert statistics['liver']['intensity'] == pytest.approx(inside.mean(), abs=0.051)
  assert statistics['spleen'] == {'volume': 0, 'intensity': 0}


def test_a_format_without_its_library_is_refused_before_any_work(both, run, monkeypatch):
  monkeypatch.setitem(sys.modules, 'SimpleITK', None)
  with pytest.raises(PredictError, match=r'--nrrd: .*pip install .mome-jax\[itk\]'):
    run(both[0], options=options('nrrd'))
  [good, bad] = run(*both)
  assert (good.status, bad.status) == ('ok', 'failed')
  assert "pip install 'mome-jax[itk]', or convert it to .nii.gz" in bad.message
