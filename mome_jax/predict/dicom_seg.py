"""Masks as a DICOM SEG object, which archives and viewers show over the scan it belongs to."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import dicom, volume
from mome_jax import __version__
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import dicom_source

# SNOMED CT codes of the classes without their side; those of DICOM's context groups where it has
# one (PS3.16). What is not listed is coded as a body structure and named by its label.
_ORGANS = {
  'spleen': ('78961009', 'Spleen'),
  'kidney': ('64033007', 'Kidney'),
  'gallbladder': ('28231008', 'Gallbladder'),
  'esophagus': ('32849002', 'Esophagus'),
  'liver': ('10200004', 'Liver'),
  'stomach': ('69695003', 'Stomach'),
  'aorta': ('15825003', 'Aorta'),
  'postcava': ('64131007', 'Inferior vena cava'),
  'portal and splenic vein': ('32764006', 'Portal vein'),
  'pancreas': ('15776009', 'Pancreas'),
  'adrenal gland': ('23451007', 'Adrenal gland'),
  'duodenum': ('38848004', 'Duodenum'),
  'hepatic vessel': ('8993003', 'Hepatic vein'),
  'lung': ('39607008', 'Lung'),
  'colon': ('71854001', 'Colon'),
  'rectum': ('34402009', 'Rectum'),
  'bladder': ('89837001', 'Bladder'),
  'prostate': ('41216001', 'Prostate'),
  'femoral head': ('2812003', 'Femoral head'),
  'celiac trunk': ('57850000', 'Celiac Axis'),
  'brainstem': ('119238007', 'Brain Stem'),
  'spinal cord': ('2748008', 'Spinal cord'),
  'parotid': ('45289007', 'Parotid gland'),
  'larynx': ('4596009', 'Larynx'),
  'mandible': ('91609006', 'Mandible'),
}
_LESIONS = {'tumor': ('108369006', 'Neoplasm'), 'cyst': ('367643001', 'Cyst')}
_SIDES = {'right': ('24028007', 'Right'), 'left': ('7771000', 'Left')}
_STRUCTURE = ('123037004', 'Body structure')
_LESION = ('49755003', 'Morphologically Abnormal Structure')


def write(
  path: str | os.PathLike,
  series: dicom.Series,
  segmentation: Segmentation,
  colours: Mapping[str, Sequence[float]],
) -> None:
  """Writes one binary segment a class; they may overlap, as an organ and its tumour do.

  Holds a byte for every voxel of every class on the slices where any class has one.

  Args:
    path: `.dcm` file.
    series: what was segmented.
    segmentation: of it.
    colours: of the classes to write, RGB in [0, 1]; each has at least one voxel.

  Raises:
    dicom_source.DicomOutputError: if the headers of the series lack what the object must repeat.
  """
  import highdicom
  from pydicom.sr.codedict import codes

  dicom_source.check(series.headers)
  labelled = segmentation.label_map(dict.fromkeys(colours, 1)) > 0
  used = np.asarray(volume.from_canonical(labelled, series.volume.geometry).any((0, 1)))
  algorithm = highdicom.AlgorithmIdentificationSequence(
    name='MoME-JAX', version=__version__, family=codes.DCM.ArtificialIntelligence
  )
  try:
    made = highdicom.seg.Segmentation(
      source_images=_completed(series, used),
      pixel_array=_frames(series, segmentation, list(colours), used),
      segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
      segment_descriptions=[
        _describe(number, name, rgb, algorithm)
        for number, (name, rgb) in enumerate(colours.items(), 1)
      ],
      series_instance_uid=highdicom.UID(),
      series_number=1000 + int(series.headers[0].get('SeriesNumber') or 0),
      sop_instance_uid=highdicom.UID(),
      instance_number=1,
      manufacturer='MoME-JAX',
      manufacturer_model_name='MoME-JAX',
      software_versions=__version__,
      device_serial_number='0',
      content_label='SEGMENTATION',
      specific_character_set=dicom_source.character_set(series, colours),
      series_description='MoME-JAX segmentation, for research only',
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise dicom_source.DicomOutputError(
      f'no DICOM SEG can be made of this series ({error})'
    ) from error
  made.save_as(path)


def _frames(
  series: dicom.Series, segmentation: Segmentation, names: Sequence[str], used: np.ndarray
) -> np.ndarray:
  """(slices, rows, columns, K) bool: masks of K classes on the used slices of a series."""
  masks = []
  for name in names:
    mask = volume.from_canonical(segmentation.mask(name), series.volume.geometry)
    masks.append(mask[..., used].T)  # (columns, rows, slices) -> (slices, rows, columns)
  return np.stack(masks, axis=-1)


def _completed(series: dicom.Series, used: np.ndarray) -> list[Any]:
  """Headers of the used slices with what anonymised ones may lack: empty fields, the thickness."""
  axes = series.volume.geometry.affine[:3, :3]
  normal = np.cross(axes[:, 0], axes[:, 1])
  apart = float(abs(axes[:, 2] @ normal) / np.linalg.norm(normal))
  headers = []
  for k in np.flatnonzero(used):
    stream = getattr(series.headers[k], 'buffer', None)  # closed, and so not to be copied
    headers.append(copy.deepcopy(series.headers[k], {id(stream): None}))
  for header in headers:
    for field in dicom_source.EMPTY:
      if header.get(field) is None:
        setattr(header, field, '')
    if not header.get('SliceThickness'):
      header.SliceThickness = round(apart, 6)
  return headers


def _describe(number: int, name: str, rgb: Sequence[float], algorithm: Any) -> Any:
  """The coded description of a segment."""
  import highdicom

  code = lambda pair: highdicom.sr.CodedConcept(pair[0], 'SCT', pair[1])
  side, _, rest = name.partition(' ')
  organ = rest if side in _SIDES else name
  words = organ.split()
  lesion = _LESIONS.get(words[-1]) if organ not in _ORGANS else None
  region = _ORGANS.get(' '.join(words[:-1])) if lesion else None
  description = highdicom.seg.SegmentDescription(
    segment_number=number,
    segment_label=name.replace('\\', '/')[:64],
    display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * v) for v in rgb)),
    segmented_property_category=code(_LESION if lesion else _STRUCTURE),
    segmented_property_type=code(lesion or _ORGANS.get(organ, _STRUCTURE)),
    algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
    algorithm_identification=algorithm,
    anatomic_regions=[code(region)] if region else None,
  )
  if side in _SIDES:
    kind = description.SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence = [code(_SIDES[side])]
  return description
