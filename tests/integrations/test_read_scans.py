"""What napari reads through the plugin: folders with DICOM, and results with their legends."""

import json

import nibabel as nib
import numpy as np
import pytest
from dicom_slices import as_series
from threshold import save_scan

from input_pipeline.ct import volume

pytest.importorskip('napari', reason='napari is not installed', exc_type=ModuleNotFoundError)

from napari.layers import Layer  # noqa: E402
from napari_mome import placement, read_scans  # noqa: E402


def test_folders_are_read_that_hold_dicom(tmp_path):
  scan = volume.read_image(save_scan(tmp_path / 'scan.nii.gz', affine=np.diag([-3.0, -4, 5, 1])))
  as_series(tmp_path / 'series', scan)
  for number in range(200):  # which may come first
    (tmp_path / 'series' / f'{number}.txt').write_text('no slice')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'notes.txt').write_text('no scan')
  assert read_scans.get_reader(str(tmp_path / 'other')) is None
  [layer] = read_scans.get_reader(str(tmp_path / 'series'))(str(tmp_path / 'series'))
  placed = placement.place(Layer.create(*layer)).loaded
  assert placed.series is not None
  np.testing.assert_array_equal(placed.volume.array, np.rint(scan.array))
  affine = placed.volume.geometry.canonical_affine
  np.testing.assert_allclose(affine, scan.geometry.canonical_affine, atol=1e-4)


def test_an_export_is_read_whose_viewer_has_many_files(tmp_path, monkeypatch):
  as_series(tmp_path / 'DICOM', volume.read_image(save_scan(tmp_path / 'scan.nii')))
  (tmp_path / 'scan.nii').unlink()
  (tmp_path / 'DICOMDIR').write_bytes(bytes(128) + b'DICM')
  monkeypatch.setattr(read_scans, '_LOOKED_AT', 1)  # os.walk lists what lies at the top first
  [layer] = read_scans.get_reader(str(tmp_path))(str(tmp_path))
  assert layer[2] == 'image'


def test_results_of_more_than_55_free_texts_are_opened(tmp_path):
  labels = np.zeros((4, 5, 6), np.uint16)
  labels[1:3, 1:3, 1:3] = 256
  nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), tmp_path / 'a_seg.nii.gz')
  row = {'label': 256, 'name': 'the 57th', 'volume_ml': 0.064}
  (tmp_path / 'a_seg.json').write_text(json.dumps({'labels': [row]}))
  [(array, shown, kind)] = read_scans.read(str(tmp_path / 'a_seg.nii.gz'))
  assert kind == 'labels' and array.max() == 256 and shown['features']['index'] == [0, 256]
