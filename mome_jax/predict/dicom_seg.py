"""Masks as a DICOM SEG object, which archives and viewers show over the scan it belongs to."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import dicom, volume
from mome_jax import __version__
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import dicom_names, dicom_source


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
        for number, (name, label) in enumerate(dicom_names.labels(colours).items(), 1)
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


def _describe(
  number: int, name: str, label: str, rgb: Sequence[float], algorithm: Any, doubt: str
) -> Any:
  """The coded description of a segment."""
  import highdicom

  codes = dicom_names.coded(name)
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
