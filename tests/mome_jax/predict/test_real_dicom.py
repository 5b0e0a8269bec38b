"""Headers that scanners wrote: the studies and the slice that come with pydicom."""

import json
import pathlib
import shutil

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_slices import as_series
from pydicom import uid
from threshold import Threshold

from input_pipeline.ct import volume
from mome_jax import predict
from mome_jax.predict import find_scans
from mome_jax.predict.request import Options
from tests.input_pipeline.sources import layouts

FILES = pathlib.Path(pydicom.__file__).parent / 'data' / 'test_files'
STUDIES = FILES / 'dicomdirtests'
SEG = Options(preview=False, dicom_seg=True)


def run(path, out, **keywords):
  return predict.predict(Threshold(), [path], out, ['liver'], progress=False, **keywords)


def test_a_real_study(tmp_path):
  [result] = run(STUDIES / '98892001', tmp_path / 'out', options=SEG)
  assert result.status == 'ok', result.message
  mask = nib.load(tmp_path / 'out' / '98892001_seg.nii.gz')
  assert mask.shape == (16, 16, 5)
  np.testing.assert_allclose(mask.header.get_zooms(), (0.488281, 0.488281, 2.5), atol=1e-5)
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert 'localizer (2 files)' in manifest['notes'][0]
  if result.labels[0]['present']:
    assert highdicom.seg.segread(tmp_path / 'out' / '98892001_seg.dcm').number_of_segments == 1


def test_a_real_study_that_misses_slices(tmp_path):
  [result] = run(STUDIES / '77654033', tmp_path / 'out')
  assert result.status == 'failed'
  assert '17106 and 17136 lie 202.50 mm apart, others 1.25 mm' in result.message
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert 'CR (3 files)' in manifest['notes'][0]


def test_a_study_without_ct():
  with pytest.raises(
    find_scans.ScanError,
    match=r'no DICOM CT series at any depth, nor NRRD or MetaImage but MR \(17 files\)',
  ):
    find_scans.find_scans([STUDIES / '98892003'])


def test_one_slice_of_a_scanner(tmp_path):
  shutil.copy(FILES / 'CT_small.dcm', tmp_path / 'slice')
  [whole] = run(FILES / 'CT_small.dcm', tmp_path / 'out')
  assert 'one DICOM file; pass the folder or zip of its whole series' in whole.message
  (tmp_path / 'in').mkdir()
  shutil.copy(FILES / 'CT_small.dcm', tmp_path / 'in' / 'a')
  [alone] = run(tmp_path / 'in', tmp_path / 'out')
  assert 'one slice only; pass the whole series' in alone.message


def without_preamble(folder, bare):
  """Copies a series; two in three slices begin with their first element, as old archives send."""
  bare.mkdir()
  for number, path in enumerate(sorted(folder.iterdir())):
    ds = pydicom.dcmread(path)
    if number % 3:
      del ds.file_meta
      ds.save_as(bare / path.name, implicit_vr=number % 3 == 1, little_endian=True)
    else:
      ds.save_as(bare / path.name)
  return bare


@pytest.mark.parametrize('syntax', [None, uid.RLELossless])
def test_folder_and_zip_are_segmented_as_the_same_nifti(syntax, tmp_path, real_data):
  scan = volume.read_image(real_data / 'totalsegmentator' / 'example_ct_sm.nii.gz')
  part = volume.to_canonical(scan.array[..., 8:16], scan.geometry.canonical_affine)
  nifti = tmp_path / 'same.nii.gz'
  volume.write_nifti(nifti, part.array, part.geometry, np.int16)
  as_series(tmp_path / 'folder', part, syntax)
  files = {p.name: p.read_bytes() for p in (tmp_path / 'folder').iterdir()}
  layouts.write_zip(tmp_path / 'packed.zip', {f'DICOM/{name}': files[name] for name in files})
  paths = [nifti, tmp_path / 'folder', tmp_path / 'packed.zip']
  if syntax is None:
    paths.append(without_preamble(tmp_path / 'folder', tmp_path / 'bare'))
  masks = []
  for path in paths:
    options = Options(preview=False) if path == nifti else SEG
    [result] = run(path, tmp_path / 'out', options=options)
    assert result.status == 'ok', result.message
    mask = nib.as_closest_canonical(nib.load(tmp_path / 'out' / f'{result.case}_seg.nii.gz'))
    masks.append((np.asarray(mask.dataobj), mask.affine, result.labels))
  (labels, affine, rows), *others = masks
  assert 0.1 < (labels > 0).mean() < 0.9
  for other, other_affine, other_rows in others:
    np.testing.assert_array_equal(other, labels)
    np.testing.assert_allclose(other_affine, affine, atol=1e-3)
    assert other_rows[0]['volume_ml'] == pytest.approx(rows[0]['volume_ml'], rel=1e-4)
  seg = highdicom.seg.segread(tmp_path / 'out' / 'packed_seg.dcm')
  assert seg.pixel_array.sum() == (labels > 0).sum()
