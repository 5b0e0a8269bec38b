"""Masks as a DICOM RT Structure Set: the contours that radiotherapy planning systems read.

The object is made with pydicom alone. rt-utils traces the centres of border voxels, so that masks
shrink by half a voxel, and brings OpenCV; highdicom, which writes DICOM SEG here, has no structure
sets. What traces is contourpy, which matplotlib draws contour lines with.

Contours are CLOSED_PLANAR, in the plane of the slice that each one names, in the patient's
coordinates; those of holes are joined to their outline as keyholes, which readers that fill by
even-odd, by winding or by union all understand. That holds for slices of any direction, also
oblique ones and of a tilted gantry; many planning systems take axial slices alone.
"""

import datetime
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import contours, dicom, volume
from mome_jax import __version__
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import dicom_names, dicom_source
from mome_jax.predict.request import Target

LABEL, WARNING = 'MoME-JAX', 'not for clinical use'
_STUDY_CLASS = '1.2.840.10008.3.1.2.3.1'  # Detached Study Management, retired and still required
_VOLUMES = ('gtv', 'ctv', 'ptv')  # how radiotherapy names its targets


def write(
  path: str | os.PathLike,
  series: dicom.Series,
  segmentation: Segmentation,
  targets: Sequence[Target],
  colours: Mapping[str, Sequence[float]],
  doubts: dicom_source.Doubts = dicom_source.NO_DOUBTS,
) -> None:
  """Writes one ROI a class, unapproved; they may overlap.

  Args:
    path: `.dcm` file.
    series: what was segmented.
    segmentation: of it.
    targets: what to write; each has at least one voxel.
    colours: of them by name, RGB in [0, 1].
    doubts: told in the descriptions of the series, the structure set and the ROIs.

  Raises:
    DicomOutputError: if the headers of the series lack what the object must repeat.
  """
  import pydicom
  from pydicom import uid

  dicom_source.check(series.headers)
  made = pydicom.Dataset()
  made.SOPClassUID, made.SOPInstanceUID = uid.RTStructureSetStorage, uid.generate_uid()
  character_set = dicom_source.character_set(series, [target.name for target in targets])
  if character_set:
    made.SpecificCharacterSet = character_set
  _describe(made, series, doubts)
  made.ReferencedFrameOfReferenceSequence = [_reference(series)]
  made.StructureSetROISequence, made.ROIContourSequence = pydicom.Sequence(), pydicom.Sequence()
  made.RTROIObservationsSequence = pydicom.Sequence()
  labels = dicom_names.labels(target.name for target in targets)
  for number, target in enumerate(targets, 1):
    label = labels[target.name]
    roi = _roi(number, label, made.FrameOfReferenceUID)
    if doubt := doubts.of_mask(target.name):
      roi.ROIDescription = doubt
    made.StructureSetROISequence.append(roi)
    made.ROIContourSequence.append(
      _roi_contour(number, series, segmentation.mask(target.name), colours[target.name])
    )
    made.RTROIObservationsSequence.append(_observation(number, target))
  made.ApprovalStatus = 'UNAPPROVED'
  made.file_meta = pydicom.dataset.FileMetaDataset()
  # In explicit VR no contour could have more than some 2000 points: lengths have 16 bits there.
  made.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
  made.save_as(path, enforce_file_format=True)


def interpreted_type(target: Target) -> str:
  """What radiotherapy takes a class for; empty where the words of a prompt do not say.

  Names with GTV, CTV or PTV in them are that, a tumor is a GTV, and other classes are organs.
  """
  for kind in _VOLUMES:
    if re.search(rf'(?<![a-z]){kind}(?![a-z])', target.name):
      return kind.upper()
  if target.name.split()[-1] == 'tumor':
    return 'GTV'
  return '' if target.taken_as == 'free' else 'ORGAN'


def _describe(made: Any, series: dicom.Series, doubts: dicom_source.Doubts) -> None:
  """Patient, study and equipment, and what the structure set is called."""
  from pydicom import uid

  now, first = datetime.datetime.now(), series.headers[0]
  for field in dicom_source.EMPTY:
    setattr(made, field, dicom_source.value(first, field))
  for field in dicom_source.OPTIONAL:
    if field in first:
      made.add(first[field])
  made.StudyInstanceUID, made.FrameOfReferenceUID = (
    first.StudyInstanceUID,
    first.FrameOfReferenceUID,
  )
  made.PositionReferenceIndicator = first.get('PositionReferenceIndicator', '')
  made.Modality, made.SeriesInstanceUID = 'RTSTRUCT', uid.generate_uid()
  made.SeriesNumber = dicom_source.series_number(series, 2000)
  made.SeriesDescription = doubts.series_description('contours', WARNING)
  made.InstanceNumber, made.OperatorsName = 1, ''
  made.Manufacturer = made.ManufacturerModelName = LABEL
  made.SoftwareVersions = __version__
  made.StructureSetLabel = made.StructureSetName = LABEL
  about = f'Automatic segmentation by {LABEL} {__version__}, {WARNING}'
  made.StructureSetDescription = f'{about}; {made.SeriesDescription}' if doubts.foreign else about
  date, time = now.strftime('%Y%m%d'), now.strftime('%H%M%S')
  made.StructureSetDate = made.SeriesDate = made.InstanceCreationDate = date
  made.StructureSetTime = made.SeriesTime = made.InstanceCreationTime = time


def _reference(series: dicom.Series) -> Any:
  """The frame of reference with the series and each of its slices."""
  from pydicom import Dataset

  first = series.headers[0]
  scan, study, frame = Dataset(), Dataset(), Dataset()
  scan.SeriesInstanceUID = first.SeriesInstanceUID
  scan.ContourImageSequence = [_slice(header) for header in series.headers]
  study.ReferencedSOPClassUID = _STUDY_CLASS
  study.ReferencedSOPInstanceUID = first.StudyInstanceUID
  study.RTReferencedSeriesSequence = [scan]
  frame.FrameOfReferenceUID = first.FrameOfReferenceUID
  frame.RTReferencedStudySequence = [study]
  return frame


def _slice(header: Any) -> Any:
  from pydicom import Dataset

  image = Dataset()
  image.ReferencedSOPClassUID = header.SOPClassUID
  image.ReferencedSOPInstanceUID = header.SOPInstanceUID
  return image


def _roi(number: int, label: str, frame: str) -> Any:
  from pydicom import Dataset

  roi = Dataset()
  roi.ROINumber, roi.ROIName = number, label
  roi.ReferencedFrameOfReferenceUID = frame
  roi.ROIGenerationAlgorithm = 'AUTOMATIC'
  roi.ROIGenerationDescription = f'{LABEL}, {WARNING}'
  return roi


def _observation(number: int, target: Target) -> Any:
  from pydicom import Dataset

  observation = Dataset()
  observation.ObservationNumber = observation.ReferencedROINumber = number
  observation.ROIObservationDescription = f'{LABEL}, {WARNING}'
  observation.RTROIInterpretedType = interpreted_type(target)
  observation.ROIInterpreter = ''
  return observation


def _roi_contour(number: int, series: dicom.Series, mask: np.ndarray, rgb: Sequence[float]) -> Any:
  from pydicom import Dataset

  roi = Dataset()
  roi.ReferencedROINumber = number
  roi.ROIDisplayColor = [round(255 * value) for value in rgb]
  roi.ContourSequence = []
  for header, points in _contours(series, mask):
    contour = Dataset()
    contour.ContourNumber = len(roi.ContourSequence) + 1
    contour.ContourImageSequence = [_slice(header)]
    contour.ContourGeometricType = 'CLOSED_PLANAR'
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f'{value:.4f}' for value in points.ravel()]
    roi.ContourSequence.append(contour)
  return roi


def _contours(series: dicom.Series, mask: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
  """The header of a slice and (N, 3) mm of the patient (LPS), for each contour of a mask."""
  slices = volume.from_canonical(mask, series.volume.geometry)  # (columns, rows, slices)
  for k in np.flatnonzero(slices.any((0, 1))):
    header = series.headers[k]
    start, spacing, turns = (
      np.array(header[field].value, np.float64)
      for field in ('ImagePositionPatient', 'PixelSpacing', 'ImageOrientationPatient')
    )
    # (column, row) -> mm: the first direction is that of a row, along which columns count.
    steps = turns.reshape(2, 3) * spacing[::-1, None]
    for ring in contours.trace(slices[..., k].T):
      yield header, start + ring @ steps
