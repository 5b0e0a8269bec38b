"""Masks as a DICOM SEG object, which archives and viewers show over the scan it belongs to."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
  doubts: dicom_source.Doubts = dicom_source.NO_DOUBTS,
) -> None:
  """Writes one binary segment a class; they may overlap, as an organ and its tumour do.

  Of the masks their frames are held, a bit a voxel, and one whole mask at a time.

  Args:
    path: `.dcm` file.
    series: what was segmented.
    segmentation: of it.
    colours: of the classes to write, RGB in [0, 1]; each has at least one voxel.
    doubts: told in the description of the series and of the segments.

  Raises:
    dicom_source.DicomOutputError: if the headers of the series lack what the object must repeat.
  """
  import highdicom
  from pydicom.sr.codedict import codes

  dicom_source.check(series.headers)
  frames = _Frames(series, segmentation, list(colours))
  algorithm = highdicom.AlgorithmIdentificationSequence(
    name='MoME-JAX', version=__version__, family=codes.DCM.ArtificialIntelligence
  )
  try:
    made = highdicom.seg.Segmentation(
      source_images=_completed(series, frames.slices),
      pixel_array=frames.marks(),
      segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
      segment_descriptions=[
        _describe(number, name, label, colours[name], algorithm, doubts.of_mask(name))
        for number, (name, label) in enumerate(labels(colours).items(), 1)
      ],
      series_instance_uid=highdicom.UID(),
      series_number=dicom_source.series_number(series, 1000),
      sop_instance_uid=highdicom.UID(),
      instance_number=1,
      manufacturer='MoME-JAX',
      manufacturer_model_name='MoME-JAX',
      software_versions=__version__,
      device_serial_number='0',
      content_label='SEGMENTATION',
      specific_character_set=dicom_source.character_set(series, colours),
      series_description=doubts.series_description('segmentation', 'for research only'),
    )
    frames.fill(made)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise dicom_source.DicomOutputError(
      f'no DICOM SEG can be made of this series ({error})'
    ) from error
  made.save_as(path)


class _Frames:
  """The frames of K masks of a series, those without a voxel left out, a bit a voxel.

  highdicom takes a byte for every voxel of every mask, and more to see whether they overlap. So it
  gets `marks`, which tell what frames there are, and `fill` puts their voxels in.

  Args:
    series: what was segmented.
    segmentation: of it.
    names: of the K masks.

  Attributes:
    slices: of the series, those that any mask has voxels in.
  """

  def __init__(self, series: dicom.Series, segmentation: Segmentation, names: Sequence[str]):
    self._uids = [header.SOPInstanceUID for header in series.headers]
    columns, rows, depth = series.volume.geometry.shape
    self._size = rows * columns
    self._shape = rows, columns
    self._packed: dict[tuple[int, int], np.ndarray] = {}  # by segment from 1 on, and slice
    self._overlap = False
    taken = np.zeros((depth, rows, columns), bool)
    for number, name in enumerate(names, 1):
      mask = volume.from_canonical(segmentation.mask(name), series.volume.geometry)
      mask = mask.T  # (columns, rows, slices) -> (slices, rows, columns)
      for k in np.flatnonzero(mask.any((1, 2))).tolist():
        self._overlap |= bool((taken[k] & mask[k]).any())
        taken[k] |= mask[k]
        self._packed[number, k] = np.packbits(mask[k], bitorder='little')
    self.slices = sorted({k for _, k in self._packed})

  def marks(self) -> np.ndarray:
    """(slices, rows, columns) of a label map with a voxel of each segment that a slice has."""
    marks = np.zeros((len(self.slices), self._size), np.uint16)
    for n, k in enumerate(self.slices):
      numbers = [number for number, where in self._packed if where == k]
      if len(numbers) > self._size:
        raise ValueError(f'{len(numbers)} segments in a slice of {self._size} voxels')
      marks[n, : len(numbers)] = numbers
    return marks.reshape(-1, *self._shape)

  def fill(self, made: Any) -> None:
    """Puts the voxels of the masks into an object that was made of `marks`."""
    bits = np.zeros(0, np.uint8)  # of a byte that two frames share
    parts = []
    [shared] = made.SharedFunctionalGroupsSequence  # what all frames have in common, as one segment
    for frame in made.PerFrameFunctionalGroupsSequence:
      one = lambda name, frame=frame: (frame if name in frame else shared)[name][0]
      number = one('SegmentIdentificationSequence').ReferencedSegmentNumber
      image = one('DerivationImageSequence').SourceImageSequence[0]
      packed = self._packed[number, self._uids.index(image.ReferencedSOPInstanceUID)]
      if self._size % 8:
        frame_bits = np.unpackbits(packed, count=self._size, bitorder='little')
        bits = np.concatenate([bits, frame_bits])
        whole = len(bits) // 8 * 8
        packed, bits = np.packbits(bits[:whole], bitorder='little'), bits[whole:]
      parts.append(packed.tobytes())
    parts.append(np.packbits(bits, bitorder='little').tobytes())
    pixels = b''.join(parts)
    made.PixelData = pixels + b'\0' * (len(pixels) % 2)
    made.SegmentsOverlap = 'YES' if self._overlap else 'NO'


def _completed(series: dicom.Series, slices: Sequence[int]) -> list[Any]:
  """Headers of some slices with what anonymised ones may lack, and the true distance of slices.

  dcmqi, with which 3D Slicer reads SEG, places frames by SpacingBetweenSlices, which scanners also
  use for a gap, a direction or nothing; without it by SliceThickness.
  """
  axes = series.volume.geometry.affine[:3, :3]
  normal = np.cross(axes[:, 0], axes[:, 1])
  apart = float(abs(axes[:, 2] @ normal) / np.linalg.norm(normal))
  headers = dicom_source.completed([series.headers[k] for k in slices])
  for header in headers:
    header.SpacingBetweenSlices = round(apart, 6)
    if not header.get('SliceThickness'):
      header.SliceThickness = header.SpacingBetweenSlices
  return headers


class Coded(NamedTuple):
  """What a class is in codes.

  Attributes:
    category: of the segmented property.
    type: of the segmented property.
    site: where a lesion is, else None.
    side: of the body, else None.
  """

  category: Any
  type: Any
  site: Any
  side: Any


def labels(names: Iterable[str]) -> dict[str, str]:
  r"""What the segment of each class is called: its name, as far as DICOM takes it.

  DICOM takes 64 characters, no `\` and nothing that is not printed. Names that are one in these get
  a number, as readers tell segments apart by what they are called.
  """
  made: dict[str, str] = {}
  for name in names:
    whole = ''.join(c if c.isprintable() else ' ' for c in name).replace('\\', '/')
    label, number = whole[:64], 1
    while label in made.values():
      number += 1
      end = f' ({number})'
      label = whole[: 64 - len(end)] + end
    made[name] = label
  return made


def coded(name: str) -> Coded:
  """The codes of a class."""
  import highdicom

  code = lambda pair: highdicom.sr.CodedConcept(pair[0], 'SCT', pair[1])
  side, _, rest = name.partition(' ')
  organ = rest if side in _SIDES else name
  words = organ.split()
  lesion = _LESIONS.get(words[-1]) if words and organ not in _ORGANS else None
  region = _ORGANS.get(' '.join(words[:-1])) if lesion else None
  return Coded(
    code(_LESION if lesion else _STRUCTURE),
    code(lesion or _ORGANS.get(organ, _STRUCTURE)),
    code(region) if region else None,
    code(_SIDES[side]) if side in _SIDES else None,
  )


def _describe(
  number: int, name: str, label: str, rgb: Sequence[float], algorithm: Any, doubt: str
) -> Any:
  """The coded description of a segment."""
  import highdicom

  codes = coded(name)
  description = highdicom.seg.SegmentDescription(
    segment_number=number,
    segment_label=label,
    display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * v) for v in rgb)),
    segmented_property_category=codes.category,
    segmented_property_type=codes.type,
    algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
    algorithm_identification=algorithm,
    anatomic_regions=[codes.site] if codes.site else None,
  )
  if doubt:
    description.SegmentDescription = doubt
  if codes.side:
    kind = description.SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence = [codes.side]
  return description
