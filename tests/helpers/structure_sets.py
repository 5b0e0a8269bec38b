"""RT Structure Sets made by hand, beside a fabricated series."""

import io
import pathlib
import sys

import pydicom
from pydicom import uid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.input_pipeline.sources import layouts  # noqa: E402

PLACE = (-100.0, -50.0)  # mm (LPS) of the first voxel of every slice of `layouts`


def series(folder, number=1, image=None):
  """The CT of `layouts.body`: 24 columns to the left, 16 rows to posterior, 12 slices upwards."""
  image = layouts.body([1])[0] if image is None else image
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in layouts.dicom_files(image, 'ct{:03d}.dcm', series=f'1.2.{number}').items():
    ds = pydicom.dcmread(io.BytesIO(data))
    ds.FrameOfReferenceUID, ds.StudyInstanceUID = f'1.2.{number}.9', f'1.2.{number}.8'
    ds.save_as(folder / name)


def box(columns, rows, k, *, shift=0.0):
  """Corner points in mm of the voxels from (first to last) columns and rows of slice k."""
  across, down, up = layouts.SPACING
  (a, b), (c, d) = columns, rows
  corners = [(a - 0.5, c - 0.5), (b + 0.5, c - 0.5), (b + 0.5, d + 0.5), (a - 0.5, d + 0.5)]
  return [(PLACE[0] + x * across, PLACE[1] + y * down, (k + shift) * up) for x, y in corners]


def structures(path, rois, number=1, *, label='plan', date='20200101', kind='CLOSED_PLANAR'):
  """Writes a structure set of series `number`.

  Args:
    path: `.dcm` file.
    rois: name -> contours, each a list of (x, y, z) in mm.
    number: of the series; None refers to none.
    label: StructureSetLabel.
    date: StructureSetDate.
    kind: ContourGeometricType.
  """
  ds = pydicom.Dataset()
  ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = uid.RTStructureSetStorage, '1.9', 'RTSTRUCT'
  ds.StructureSetLabel, ds.StructureSetDate, ds.StructureSetTime = label, date, '120000'
  if number is not None:
    scan, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    scan.SeriesInstanceUID = f'1.2.{number}'
    study.RTReferencedSeriesSequence, frame.FrameOfReferenceUID = [scan], f'1.2.{number}.9'
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
  ds.StructureSetROISequence, ds.ROIContourSequence = [], []
  for roi_number, (name, contours) in enumerate(rois.items(), 7):
    roi, held = pydicom.Dataset(), pydicom.Dataset()
    roi.ROINumber, roi.ROIName, held.ReferencedROINumber = roi_number, name, roi_number
    held.ContourSequence = []
    for points in contours:
      contour = pydicom.Dataset()
      contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
      contour.ContourData = [f'{value:.3f}' for point in points for value in point]
      held.ContourSequence.append(contour)
    ds.StructureSetROISequence.append(roi)
    ds.ROIContourSequence.append(held)
  ds.file_meta = pydicom.dataset.FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
  ds.save_as(path, enforce_file_format=True)
