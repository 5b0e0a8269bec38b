"""Measurements as a DICOM Structured Report (TID 1500), which archives keep beside the scan."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.ct import dicom
from mome_jax import __version__
from mome_jax.predict import dicom_names, dicom_source

_HU = ("[hnsf'U]", 'UCUM', 'Hounsfield unit')  # UCUM's code of it
_CT_OF = ('77477000', 'SCT', 'Computed tomography')


def write(
  path: pathlib.Path,
  series: dicom.Series,
  rows: Sequence[Mapping[str, Any]],
  segments: str | os.PathLike | None = None,
  doubts: dicom_source.Doubts = dicom_source.NO_DOUBTS,
) -> None:
  """Writes volume, mean HU and its standard deviation of each class.

  Args:
    path: `.dcm` file.
    series: what was segmented.
    rows: of the legend, of classes with voxels; see `class_statistics.statistics`.
    segments: DICOM SEG of the same classes in that order, which the measurements then refer to;
      without it they refer to the series.
    doubts: told in the description of the series, and as evaluations of the classes.

  Raises:
    DicomOutputError: if the headers of the series lack what the object must repeat.
  """
  import highdicom
  import pydicom
  from highdicom import sr
  from pydicom.sr.codedict import codes

  dicom_source.check(series.headers)
  headers = dicom_source.completed(series.headers)
  seg = None if segments is None else pydicom.dcmread(segments, stop_before_pixels=True)
  device = sr.DeviceObserverIdentifyingAttributes(
    uid=highdicom.UID(), name='MoME-JAX', model_name='MoME-JAX'
  )
  observer = sr.ObserverContext(codes.DCM.Device, device)
  try:
    report = sr.MeasurementReport(
      observation_context=sr.ObservationContext(observer_device_context=observer),
      procedure_reported=sr.CodedConcept(*_CT_OF),
      imaging_measurements=[
        _group(row, number, seg, headers, row['name'] in doubts.masks)
        for number, row in enumerate(rows, 1)
      ],
      title=codes.DCM.ImagingMeasurementReport,
    )
    made = sr.EnhancedSR(
      evidence=[*headers, *([seg] if seg is not None else [])],
      content=report[0],
      series_instance_uid=highdicom.UID(),
      series_number=dicom_source.series_number(series, 3000),
      sop_instance_uid=highdicom.UID(),
      instance_number=1,
      manufacturer='MoME-JAX',
      is_complete=True,
      series_description=doubts.series_description('measurements', 'for research only'),
      specific_character_set=dicom_source.character_set(series, [row['name'] for row in rows]),
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise dicom_source.DicomOutputError(
      f'no DICOM SR can be made of this series ({error})'
    ) from error
  made.save_as(path)


def _group(
  row: Mapping[str, Any], number: int, seg: Any, headers: Sequence[Any], implausible: bool
) -> Any:
  """What was measured of one class, which is the segment of that number."""
  import highdicom
  from highdicom import sr
  from pydicom.sr.codedict import codes

  kind = dicom_names.coded(row['name'])
  site = kind.site or (kind.type if kind.side else None)
  unit = sr.CodedConcept(*_HU)
  attenuation = sr.CodedConcept('112031', 'DCM', 'Attenuation Coefficient')
  measurements = [
    sr.Measurement(codes.SCT.Volume, row['volume_ml'], sr.CodedConcept('mL', 'UCUM', 'Milliliter')),
    sr.Measurement(attenuation, row['mean_hu'], unit, derivation=codes.SCT.Mean),
    sr.Measurement(attenuation, row['sd_hu'], unit, derivation=codes.SCT.StandardDeviation),
  ]
  common = {
    'tracking_identifier': sr.TrackingIdentifier(highdicom.UID(), row['name']),
    'algorithm_id': sr.AlgorithmIdentification('MoME-JAX', __version__),
    'finding_category': kind.category,
    'finding_type': kind.type,
    'finding_sites': [sr.FindingSite(site, kind.side)] if site else None,
    'measurements': measurements,
    'qualitative_evaluations': [_implausible()] if implausible else None,
  }
  if seg is None:
    images = [
      sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
      for header in headers
    ]
    return sr.MeasurementsAndQualitativeEvaluations(**common, source_images=images)
  # `from_segmentation` looks into each frame for its segment, which one for all is not told in.
  series = sr.SourceSeriesForSegmentation(headers[0].SeriesInstanceUID)
  segment = sr.ReferencedSegment(seg.SOPClassUID, seg.SOPInstanceUID, number, source_series=series)
  return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**common, referenced_segment=segment)


def _implausible() -> Any:
  """That a mask cannot be what it is called; DICOM has no codes for it."""
  from highdicom import sr

  return sr.QualitativeEvaluation(
    sr.CodedConcept('plausibility', '99MOME', 'Plausibility of the mask'),
    sr.CodedConcept('implausible', '99MOME', 'IMPLAUSIBLE, do not trust'),
  )
