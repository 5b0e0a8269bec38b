"""Scans as DICOM slices with the headers of a real scanner."""

import pathlib

import numpy as np
import pydicom
from pydicom import uid

from input_pipeline.ct import volume

FILES = pathlib.Path(pydicom.__file__).parent / 'data' / 'test_files'


def as_series(path, scan: volume.Volume, syntax=None):
  """Writes a scan as slices with the headers of a real one, every second one with padding."""
  path.mkdir()
  array = volume.from_canonical(scan.array, scan.geometry)
  affine = np.diag([-1.0, -1, 1, 1]) @ scan.geometry.affine  # LPS
  step = np.linalg.norm(affine[:3, :3], axis=0)
  study = uid.generate_uid()[:56].rstrip('.')
  for k in range(array.shape[2]):
    ds = pydicom.dcmread(FILES / 'CT_small.dcm')
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f'{study}.1'
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'{study}.1.{k}'
    ds.ImageOrientationPatient = [*affine[:3, 0] / step[0], *affine[:3, 1] / step[1]]
    ds.ImagePositionPatient = [round(float(v), 6) for v in affine[:3] @ [0, 0, k, 1]]
    ds.PixelSpacing, ds.SliceThickness = [float(step[1]), float(step[0])], float(step[2])
    ds.Columns, ds.Rows = array.shape[:2]
    ds.RescaleSlope, ds.RescaleIntercept, ds.PixelRepresentation = 1, -1024, 1
    ds.pop('PixelPaddingValue', None)
    stored = np.rint(array[..., k].T + 1024).astype('<i2')
    if k % 2:  # what lies outside the scanner's circle, as GE stores it
      ds.add_new('PixelPaddingValue', 'SS', -2000)
      stored[stored == 0] = -2000
    ds.PixelData = stored.tobytes()
    if syntax is not None:
      ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path / f'IM{k:04d}')
