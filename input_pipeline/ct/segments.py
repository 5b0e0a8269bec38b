"""Segments of a DICOM SEG as masks on the grid of their series."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import resolve
from input_pipeline.ct.volume import LPS_TO_RAS, Geometry, VolumeError

_OFF = 0.35  # voxels; as far as a frame may lie off its slice, as those of a series off even steps
# Codes of SNOMED CT and SNOMED RT (DICOM PS3.16, CID 244) for one side.
_SIDES = {'7771000': 'left', 'G-A101': 'left', '24028007': 'right', 'G-A100': 'right'}


def labels(dataset: Any) -> dict[int, str]:
  """Number of each segment -> its label, with the side if its code alone says that: 'Lung left'.

  Archives call both lungs 'Lung', and have the sides in modifiers of what they are.
  """
  return {int(one.SegmentNumber): _label(one) for one in dataset.SegmentSequence}


def _label(segment: Any) -> str:
  label = str(segment.SegmentLabel)
  codes = [
    str(modifier.get('CodeValue', ''))
    for kind in segment.get('SegmentedPropertyTypeCodeSequence') or ()
    for modifier in kind.get('SegmentedPropertyTypeModifierCodeSequence') or ()
  ]
  sides = {_SIDES[code] for code in codes if code in _SIDES}
  said, _ = resolve.key(label)
  return f'{label} {sides.pop()}' if len(sides) == 1 and not said else label


def frames(dataset: Any) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Number of the segment, (3,) place in mm (LPS) and (rows, columns) mask of each frame.

  A probability counts from one half. One frame is unpacked at a time: a SEG of a hundred structures
  has gigabytes of them.
  """
  from pydicom import pixels  # slow to import

  least = 1
  if dataset.SegmentationType == 'FRACTIONAL':
    least = (int(dataset.MaximumFractionalValue) + 1) // 2
  shared = dataset.SharedFunctionalGroupsSequence[0]
  unpacked = pixels.iter_pixels(dataset)
  if dataset.BitsAllocated == 1 and dataset.Rows * dataset.Columns % 8:
    # NOTE: one at a time, pydicom 3.0 loses bits of frames that begin within a byte.
    unpacked = iter(dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns))
  for frame, groups in zip(unpacked, dataset.PerFrameFunctionalGroupsSequence, strict=True):
    place = groups if 'PlanePositionSequence' in groups else shared
    named = groups if 'SegmentIdentificationSequence' in groups else shared
    number = int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    position = np.array(place.PlanePositionSequence[0].ImagePositionPatient, np.float64)
    yield number, position, least <= frame


def check_kind(dataset: Any, place: str) -> None:
  """VolumeError of what is neither BINARY nor FRACTIONAL."""
  kind = str(dataset.get('SegmentationType', ''))
  if kind not in ('BINARY', 'FRACTIONAL'):
    raise VolumeError(f'{place}: a SEG of type {kind or "none"}; export it as BINARY')


def read(
  dataset: Any, place: str, geometry: Geometry, chosen: Sequence[str]
) -> dict[str, np.ndarray]:
  """Masks of some segments.

  Args:
    dataset: of pydicom.
    place: for messages.
    geometry: of the series; its own axes are (columns, rows, slices).
    chosen: labels of segments.

  Returns:
    Label -> (columns, rows, slices) bool, of those with voxels; see `frames`.

  Raises:
    VolumeError: if it lies on another grid, or is no binary or fractional object.
  """
  check_kind(dataset, place)
  other = VolumeError(f'{place}: lies on another grid than its series; export it on that of the CT')
  back = np.linalg.inv(geometry.affine)
  told = *dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence
  same = all(_has_axes(groups, geometry) for groups in told)
  if (dataset.Columns, dataset.Rows) != geometry.shape[:2] or not same:
    raise other
  names = labels(dataset)
  masks: dict[str, np.ndarray] = {}
  for number, position, frame in frames(dataset):
    if names[number] not in chosen:
      continue
    column, row, height = back[:3, :3] @ LPS_TO_RAS @ position + back[:3, 3]
    k = round(float(height))
    if max(abs(column), abs(row), abs(height - k)) > _OFF or not 0 <= k < geometry.shape[2]:
      raise other
    mask = masks.setdefault(names[number], np.zeros(geometry.shape, bool))
    mask[..., k] |= frame.T
  return {name: mask for name, mask in masks.items() if mask.any()}


def _has_axes(groups: Any, geometry: Geometry) -> bool:
  """Whether columns and rows run, and are as far apart, as those of a series, where it is said."""
  steps = geometry.affine[:3, :2] * [[-1], [-1], [1]]
  apart = np.linalg.norm(steps, axis=0)
  if 'PlaneOrientationSequence' in groups:
    turns = np.array(groups.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64)
    if np.abs(turns.reshape(2, 3).T - steps / apart).max() > 1e-3:
      return False
  if 'PixelMeasuresSequence' in groups:
    rows_apart, columns_apart = map(float, groups.PixelMeasuresSequence[0].PixelSpacing)
    off = np.abs([columns_apart, rows_apart] - apart) * geometry.shape[:2]  # mm, at the far end
    return bool((off < apart / 2).all())
  return True
