"""RT Structure Sets and SEG objects beside a CT series: what they hold, and that as masks."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import remarks
from input_pipeline.ct import contours, dicom_series, segments
from input_pipeline.ct.volume import LPS_TO_RAS, Geometry, VolumeError
from input_pipeline.errors import few
from input_pipeline.files import inventory

_CLOSED = ('CLOSED_PLANAR', 'CLOSEDPLANAR_XOR')
_OFF = 0.35  # of the distance of slices; as far as a contour may lie off its slice
_FAR = 1e5  # mm; no patient is as large
_UNREAD = ('empty', 'cannot be opened')  # reasons of `inventory.File`


@dataclasses.dataclass(frozen=True)
class StructureSet:
  """A structure set, or a SEG, whose segments are its ROIs, in a folder or zip archive.

  Attributes:
    name: of its file inside.
    label: StructureSetLabel, of a SEG its ContentLabel.
    made: date and time, as texts that sort in time.
    series: SeriesInstanceUIDs that it refers to.
    heights: ROI -> (lowest, highest) third coordinate in mm of its closed contours, or of a
      segment's frames with voxels; ROIs without contours, and segments without voxels, are not
      there.
    written: ROI -> label of its segment, as the file has it; of a SEG alone.
  """

  name: str
  label: str
  made: tuple[str, ...]
  series: tuple[str, ...]
  heights: Mapping[str, tuple[float, float]]
  written: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find(path: pathlib.Path, study: dicom_series.Study | None = None) -> list[StructureSet]:
  """The structure sets and SEG objects of a folder, at any depth, or zip archive; the newest last.

  Args:
    path: to look into.
    study: its series, where they are known.

  Raises:
    VolumeError: if one cannot be read, or a file that may be one.

  Warns:
    UserWarning: of files that are empty or cannot be opened, and whose names are not of DICOM.
  """
  study = dicom_series.find_series(path) if study is None else study
  slices = {name for series in study.series for name in series.names}
  sets = []
  with dicom_series.opened(path) as open_file:
    held = inventory.look(path, ('dicom',))
    _check_readable(path, study, held)
    for file in held.used:
      if file.name in slices:
        continue
      with _explaining(str(file.path)):
        header = dicom_series.parse(file.name, open_file, specific_tags=['Modality'])
        if header.get('Modality') == 'RTSTRUCT':
          sets.append(_read(file.name, dicom_series.parse(file.name, open_file)))
        elif header.get('Modality') == 'SEG':
          dataset = dicom_series.parse(file.name, open_file)
          segments.check_kind(dataset, str(file.path))
          sets.append(_read_segments(file.name, dataset))
  return sorted(sets, key=lambda one: (one.made, one.name))


def _check_readable(
  path: pathlib.Path, study: dicom_series.Study, held: inventory.Inventory
) -> None:
  """Refuses a file of no series that cannot be read: the newest structure set may be in it."""
  unknown = (file.problem for file in held.failed if file.kind != 'dicom')
  for problem in (*study.failed.values(), *unknown):
    raise VolumeError(problem)
  if unread := [file for file in held.left_out if file.reason in _UNREAD]:
    names = few(file.name for file in unread)
    remarks.tell(f'{path}: left out: {", ".join(inventory.phrases(unread))}: {names}')


@contextlib.contextmanager
def _explaining(place: str) -> Iterator[None]:
  """A block that reads the file of this place; VolumeError whatever is wrong with it."""
  try:
    yield
  except dicom_series.SliceError as error:
    raise VolumeError(f'{place}: {error}') from error
  except (VolumeError, MemoryError):
    raise
  except Exception as error:  # pydicom reads values when they are asked for, and raises many
    reason = dicom_series.reason(error)
    raise VolumeError(f'{place}: damaged structure set ({reason}); copy it again') from error


def _read(name: str, dataset: Any) -> StructureSet:
  text = lambda field: str(dicom_series.value(dataset, field) or '')
  heights: dict[str, tuple[float, float]] = {}
  for roi, items in _rois(dataset):
    closed = [item for item in items if _is_closed(*item)]
    planes = [
      float(value)
      for _, data in closed or items  # if none is closed, reading it tells
      for value in (data[2::3].min(), data[2::3].max())
    ]
    if planes:
      planes += heights.get(roi, ())  # two ROIs may have one name
      heights[roi] = (min(planes), max(planes))
  series = [
    str(scan.SeriesInstanceUID)
    for frame in dataset.get('ReferencedFrameOfReferenceSequence') or ()
    for study in frame.get('RTReferencedStudySequence') or ()
    for scan in study.get('RTReferencedSeriesSequence') or ()
  ]
  return StructureSet(
    name,
    text('StructureSetLabel'),
    (text('StructureSetDate'), text('StructureSetTime'), text('InstanceCreationDate'),
     text('InstanceCreationTime')),
    tuple(dict.fromkeys(series)),
    heights,
  )  # fmt: skip


def _read_segments(name: str, dataset: Any) -> StructureSet:
  text = lambda field: str(dicom_series.value(dataset, field) or '')
  names = segments.labels(dataset)
  planes: dict[str, list[float]] = {}
  for number, place, mask in segments.frames(dataset):
    if mask.any():
      planes.setdefault(names[number], []).append(float(place[2]))
  return StructureSet(
    name,
    text('ContentLabel'),
    tuple(map(text, ('ContentDate', 'ContentTime', 'InstanceCreationDate',
                     'InstanceCreationTime'))),
    tuple(str(one.SeriesInstanceUID) for one in dataset.get('ReferencedSeriesSequence') or ()),
    {label: (min(heights), max(heights)) for label, heights in planes.items()},
    {names[int(one.SegmentNumber)]: str(one.SegmentLabel) for one in dataset.SegmentSequence},
  )  # fmt: skip


def _rois(dataset: Any) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
  """Name of each ROI, and the geometric type and numbers of each of its contours."""
  contoured = {int(roi.ReferencedROINumber): roi for roi in dataset.get('ROIContourSequence') or ()}
  for roi in dataset.get('StructureSetROISequence') or ():
    items = []
    held = contoured.get(int(roi.ROINumber))
    for contour in (held.get('ContourSequence') or ()) if held is not None else ():
      data = np.array(dicom_series.value(contour, 'ContourData') or (), np.float64)
      if len(data) % 3:
        raise ValueError(f'{roi.ROIName}: ContourData of {len(data)} numbers')
      if not (np.abs(data) < _FAR).all():
        raise ValueError(f'{roi.ROIName}: ContourData with numbers that are no place')
      if len(data):
        items.append((str(contour.get('ContourGeometricType', '')), data))
    yield str(roi.ROIName), items


def read_masks(
  path: pathlib.Path, name: str, geometry: Geometry, names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Masks of some ROIs on the grid of their series.

  All contours of an ROI in one slice are filled together by the even-odd rule at the centres of
  voxels, see `contours.rasterise`: keyholes and separate contours of holes are holes. The same
  contour twice counts once. Of a SEG its segments, see `segments.read`.

  Args:
    path: folder or zip archive.
    name: of the structure set's file inside.
    geometry: of the series; its own axes are (columns, rows, slices).
    names: of ROIs.

  Returns:
    Name -> (columns, rows, slices) bool, of those that have closed contours in the scan.

  Raises:
    VolumeError: if it is damaged, or a contour lies between slices or across them.

  Warns:
    UserWarning: of contours that are not closed, doubled, or lie beyond the scan; of slices
      between contours that have none.
  """
  place = f'{path}/{name}'
  with _explaining(place):
    with dicom_series.opened(path) as open_file:
      dataset = dicom_series.parse(name, open_file)
    if dataset.get('Modality') == 'SEG':
      return segments.read(dataset, place, geometry, names)
    masks: dict[str, np.ndarray] = {}
    for roi, items in _rois(dataset):
      if roi not in names:
        continue
      rings = _by_slice(f'{place}: ROI {roi!r}', items, geometry)
      mask = masks.setdefault(roi, np.zeros(geometry.shape, bool))
      for k, several in rings.items():
        mask[..., k] |= contours.rasterise(several, geometry.shape[1::-1]).T
  return {roi: mask for roi, mask in masks.items() if mask.any()}


def _is_closed(kind: str, data: np.ndarray) -> bool:
  return kind in _CLOSED and len(data) >= 9


def _outline(ring: np.ndarray) -> bytes:
  """What closed contours (N, 2) have in common that start elsewhere or run the other way."""
  if (ring[0] == ring[-1]).all():
    ring = ring[:-1]
  lowest = ring[np.lexsort(ring.T[::-1])[0]]
  starts = np.flatnonzero((ring == lowest).all(1))
  forward = [np.roll(ring, -start, 0) for start in starts]
  backward = [np.roll(one[::-1], 1, 0) for one in forward]
  return min(one.tobytes() for one in forward + backward)


def _by_slice(
  place: str, items: Sequence[tuple[str, np.ndarray]], geometry: Geometry
) -> dict[int, list[np.ndarray]]:
  """Slice -> its contours as (N, 2) columns and rows."""
  back = np.linalg.inv(geometry.affine)
  rings: dict[int, dict[bytes, np.ndarray]] = {}
  left_out = {'open or points': 0, 'beyond the scan': 0, 'doubled': 0}
  for kind, data in items:
    if not _is_closed(kind, data):
      left_out['open or points'] += 1
      continue
    points = data.reshape(-1, 3)
    voxels = points @ LPS_TO_RAS @ back[:3, :3].T + back[:3, 3]
    height = float(voxels[:, 2].mean())
    k = round(height)
    if not -_OFF <= height <= geometry.shape[2] - 1 + _OFF:
      left_out['beyond the scan'] += 1
      continue
    if np.abs(voxels[:, 2] - k).max() > _OFF:
      raise VolumeError(
        f'{place}: a contour at {points[:, 2].min():.1f} to {points[:, 2].max():.1f} mm lies '
        'between the slices or across them; the structure set is of another series: export both '
        'again'
      )
    ring = np.round(voxels[:, :2], 4) + 0.0
    same, key = rings.setdefault(k, {}), _outline(ring)
    left_out['doubled'] += key in same
    same[key] = ring
  told = ', '.join(f'{count} {what}' for what, count in left_out.items() if count)
  if told:
    remarks.tell(f'{place}: contours left out: {told}')
  gaps = sum(k not in rings for k in range(min(rings), max(rings))) if rings else 0
  if gaps:
    remarks.tell(
      f'{place}: no contour in {gaps} of the {max(rings) - min(rings) + 1} slices from its first '
      'to its last; they are taken to be without it: interpolate it in the planning system'
    )
  return {k: list(same.values()) for k, same in rings.items()}
