"""CT series in DICOM: a folder or a zip archive of slices to a canonical volume."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline import remarks
from input_pipeline.ct import dicom_series, volume
from input_pipeline.ct.dicom_series import SeriesFiles, SliceError, Study, find_series, opened
from input_pipeline.ct.volume import VolumeError
from input_pipeline.errors import reading_into_memory
from input_pipeline.files import inventory

__all__ = ['Series', 'SeriesFiles', 'find_series', 'like', 'opened', 'read_dicom', 'read_pixels',
           'read_series', 'Study']  # fmt: skip

_OFF = 0.15  # slices may lie this part of their distance off a line of even steps
_ROUNDED = 0.06  # mm; what positions of one decimal may lie off it, at most a quarter of the step
_TISSUE = -900.0, 3072.0  # HU between which padding is none: a program has changed the one only
_TILT = 1e-3
_TILT_DEGREES = 0.5  # of the gantry; less is round-off
# Field -> how many numbers it has.
_GEOMETRY = {'ImagePositionPatient': 3, 'ImageOrientationPatient': 6, 'PixelSpacing': 2, 'Rows': 1,
             'Columns': 1}  # fmt: skip
_OPTIONAL = ('InstanceNumber', 'RescaleSlope', 'RescaleIntercept', 'PixelPaddingValue')


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
  """One CT series.

  Attributes:
    volume: float32 HU in canonical order; its geometry's own grid is (columns, rows, slices).
    names: file name of each slice, in the order of the own grid's last axis.
    headers: pydicom dataset of each slice without its pixels, in that order.
  """

  volume: volume.Volume
  names: tuple[str, ...]
  headers: tuple


def read_dicom(
  path: str | os.PathLike, *, series: str | SeriesFiles | None = None
) -> volume.Volume:
  """Reads the CT series of a folder or zip archive.

  Args:
    path: folder, searched to any depth, or `.zip` file; files that are no CT slices are passed
      over, one that is and cannot be read fails the series.
    series: SeriesInstanceUID to read where there are several, or one of `find_series`.

  Returns:
    Volume of float32 HU >= -1024, as `volume.read_image`.

  Raises:
    VolumeError: if there is no series or more than one, slices are missing, unevenly spaced, of
      different sizes or directions, or a needed field is absent; the message names file and fix.
  """
  return read_series(path, series=series).volume


def read_series(path: str | os.PathLike, *, series: str | SeriesFiles | None = None) -> Series:
  """As `read_dicom`, with names and headers of the slices."""
  path = pathlib.Path(path)
  if not isinstance(series, SeriesFiles):
    series = _only_series(path, series)
  if series.problem:
    raise VolumeError(series.problem)
  place = str(path / series.folder)
  with dicom_series.HUSH, reading_into_memory(place, VolumeError):
    return _stack(place, _without_copies(place, _read_slices(path, series)))


def _only_series(path: pathlib.Path, uid: str | None) -> SeriesFiles:
  study = find_series(path)
  scans = [scan for scan in study.series if uid in (None, scan.uid)]
  if study.failed and (uid is None or not scans):
    raise VolumeError(next(iter(study.failed.values())))
  if study.unsupported and not scans:
    raise VolumeError(next(iter(study.unsupported.values())))
  if not scans:
    kind = f'series {uid}' if uid else 'DICOM CT slices'
    instead = f' but {", ".join(study.left_out)}' if study.left_out else ''
    raise VolumeError(f'{path}: no {kind} in it{instead}; pass the folder or zip of one series')
  if len(scans) > 1:
    parts = (f'{scan.uid} {scan.part}'.strip() + f' ({len(scan.names)} slices)' for scan in scans)
    lines = ', '.join(sorted(parts))
    raise VolumeError(f'{path}: several series: {lines}; keep one in the folder, or name one')
  return scans[0]


def _read_slices(path: pathlib.Path, series: SeriesFiles) -> list[tuple[str, Any]]:
  """Name and dataset of each slice of a scan."""
  slices = []
  with opened(path) as open_file:
    for name in series.names:
      try:
        dataset = dicom_series.parse(name, open_file)
        kind = dicom_series.other_kind(dataset, 'PixelData')
        if kind:
          raise SliceError(f'is no CT slice but {kind}; take it away')
        _check_fields(dataset)
      except SliceError as error:
        raise VolumeError(f'{path}/{name}: {error}') from error
      except MemoryError:
        raise
      except Exception as error:  # pydicom reads values when they are asked for, and raises many
        text = f'{path}/{name}: damaged DICOM ({dicom_series.reason(error)}); copy it again'
        raise VolumeError(text) from error
      slices.append((name.removeprefix(f'{series.folder}/'), dataset))
  return slices


def _check_fields(dataset) -> None:
  """Refuses a slice that does not say where it lies."""
  missing = [field for field in _GEOMETRY if dicom_series.value(dataset, field) is None]
  if missing:
    raise SliceError(f'no {", ".join(missing)}; export the series again')
  for field, count in _GEOMETRY.items():
    numbers = np.atleast_1d(dataset[field].value).astype(float).tolist()
    if len(numbers) != count or not np.isfinite(numbers).all():
      raise SliceError(f'{field} is {numbers}, not {count} numbers; export the series again')
  if min(map(float, dataset.PixelSpacing)) <= 0:  # a negative one would mirror the scan
    numbers = list(map(float, dataset.PixelSpacing))
    raise SliceError(f'PixelSpacing {numbers} must be above 0 mm; export the series again')
  for field in _OPTIONAL:
    float(dicom_series.value(dataset, field) or 0)  # raises what pydicom says of odd values
  rows, columns = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
  lengths = np.linalg.norm([rows, columns], axis=1)
  if np.abs(lengths - 1).max() > 0.01 or abs(rows @ columns) > 0.01:
    text = [round(float(number), 4) for number in (*rows, *columns)]
    raise SliceError(
      f'ImageOrientationPatient {text} is not two directions at right angles; export the series '
      'again'
    )


def _without_copies(place: str, slices: list) -> list:
  """The slices, each once: files with the same pixels at the same place are copies."""
  at: dict[tuple[float, ...], tuple] = {}
  for name, dataset in slices:
    position = tuple(map(float, dataset.ImagePositionPatient))
    first_name, first = at.setdefault(position, (name, dataset))
    if dataset.PixelData != first.PixelData:
      raise VolumeError(
        f'{place}: {first_name} and {name} lie at the same place and differ: no tag tells which '
        'phase they are of; export one phase'
      )
  if len(at) < len(slices):
    files = inventory.phrases(['copies of slices'] * (len(slices) - len(at)))[0]
    remarks.tell(f'{place}: left out {files}', stacklevel=4)
  return list(at.values())


def _stack(place: str, slices: list) -> Series:
  _check_alike(place, slices)
  first = slices[0][1]
  direction = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
  normal = np.cross(*direction)
  slices = sorted(slices, key=lambda item: float(normal @ np.array(item[1].ImagePositionPatient)))
  if len(slices) < 2:
    raise VolumeError(f'{place}: one slice only; pass the whole series')
  positions = np.array([dataset.ImagePositionPatient for _, dataset in slices], float)
  names = tuple(pathlib.PurePosixPath(name).name for name, _ in slices)
  datasets = tuple(dataset for _, dataset in slices)
  _check_steps(place, positions @ normal, names, datasets)
  _check_line(place, positions, normal, names)
  array = np.stack([_pixels(place, *item) for item in slices], -1)
  for dataset in datasets:
    del dataset.PixelData
  rows, columns = map(float, first.PixelSpacing)
  step, start = np.polyfit(np.arange(len(slices)), positions, 1)
  affine = np.eye(4)
  affine[:3] = np.stack([direction[0] * columns, direction[1] * rows, step, start], -1)
  affine[:3] = volume.LPS_TO_RAS @ affine[:3]
  hu = volume.to_hu(array, place)
  scan = volume.to_canonical(hu, affine, name=place, fix='export the series again')
  return Series(scan, names, datasets)


def _check_alike(place: str, slices: list) -> None:
  """Refuses slices of different sizes, directions or voxel sizes."""
  first_name, first = slices[0]
  for name, dataset in slices:
    sizes = [f'{one.Rows}x{one.Columns} pixels' for one in (dataset, first)]
    spacings = [list(map(float, one.PixelSpacing)) for one in (dataset, first)]
    directions = [np.array(one.ImageOrientationPatient, float) for one in (dataset, first)]
    kinds: dict[str, tuple[list, bool]] = {
      'size': (sizes, sizes[0] == sizes[1]),
      'pixel spacing': (spacings, np.allclose(spacings[0], spacings[1], rtol=1e-3)),
      'direction': ([d.round(4).tolist() for d in directions],
                    np.abs(directions[0] - directions[1]).max() <= _TILT),
    }  # fmt: skip
    for kind, (values, same) in kinds.items():
      if not same:
        raise VolumeError(
          f'{place}/{name}: other {kind} than {first_name} ({values[0]}, not {values[1]}); '
          'keep one series in the folder, without localizers'
        )


def _check_steps(place: str, along: np.ndarray, names: Sequence[str], datasets: Sequence) -> None:
  """Refuses slices that lie off a line of even steps, and says how."""
  steps = np.diff(along)
  count = np.arange(len(along))
  step, start = np.polyfit(count, along, 1)
  off = np.abs(along - step * count - start).max()
  if steps.min() >= 1e-3 and off <= max(_OFF * step, min(_ROUNDED, step / 4)):
    return
  usual = float(np.median(steps))
  i = int(np.argmax(np.abs(steps - usual) > 0.1 * usual)) if usual >= 1e-3 else 0
  if steps.min() < 1e-3:
    i = int(steps.argmin())
  pair, ratio = f'{names[i]} and {names[i + 1]}', steps[i] / max(usual, 1e-3)
  numbers = [dicom_series.value(dataset, 'InstanceNumber') for dataset in datasets[i : i + 2]]
  following = None not in numbers and abs(int(numbers[1]) - int(numbers[0])) == 1
  if steps[i] < 1e-3:
    text = f'{pair} lie at the same place: slices of two scans, or doubled; export one scan'
  elif ratio > 1.5 and abs(ratio - round(ratio)) < 0.2 and not following:
    text = (
      f'{pair} lie {steps[i]:.2f} mm apart, others {usual:.2f} mm; slices between '
      'them are missing: export the series again'
    )
  else:
    text = (
      f'slices are {steps.min():.2f} to {steps.max():.2f} mm apart, {pair} {steps[i]:.2f} mm: '
      'unevenly spaced; convert the series with dcm2niix, which makes them even, and pass its NIfTI'
    )
  raise VolumeError(f'{place}: {text}')


def _check_line(
  place: str, positions: np.ndarray, normal: np.ndarray, names: Sequence[str]
) -> None:
  """Refuses slices that are shifted against each other, warns of a tilted gantry."""
  along = positions @ normal
  step = (positions[-1] - positions[0]) / (along[-1] - along[0])
  off = np.linalg.norm(positions - positions[0] - np.outer(along - along[0], step), axis=1)
  if off.max() > 1:
    raise VolumeError(
      f'{place}: {names[int(off.argmax())]} is shifted by {off.max():.1f} mm within its plane; the '
      'series mixes several reconstructions: export one'
    )
  tilt = float(np.degrees(np.arccos(min(1.0, 1 / float(np.linalg.norm(step))))))
  if tilt > _TILT_DEGREES:
    remarks.tell(
      f'{place}: the gantry is tilted by {tilt:.1f} degrees; the network sees the anatomy sheared, '
      'expect less or straighten it with dcm2niix'
    )


def _pixels(place: str, name: str, dataset) -> np.ndarray:
  """(columns, rows) float32 HU; padding is air."""
  try:
    stored = dataset.pixel_array
  except MemoryError:
    raise
  except Exception as error:  # a missing decoder or a damaged stream
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax:  # a damaged one
      reason = f'{syntax} is no transfer syntax; copy it again'
    elif syntax.is_compressed:
      reason = (
        f'{syntax.name}: {reason}'.rstrip('.') + '; pip install pylibjpeg pylibjpeg-libjpeg '
        'pylibjpeg-openjpeg, or decompress it with gdcmconv --raw'
      )
    raise VolumeError(f'{place}/{name}: pixels cannot be decoded ({reason})') from error
  if stored.ndim != 2:
    raise VolumeError(
      f'{place}/{name}: {stored.ndim} axes; colour and multi-frame are not supported'
    )
  number = lambda field, default: (
    default if (v := dicom_series.value(dataset, field)) is None else v
  )
  slope, intercept = float(number('RescaleSlope', 1)), float(number('RescaleIntercept', 0))
  image = stored.astype(np.float32) * slope
  image += intercept
  padding = dicom_series.value(dataset, 'PixelPaddingValue')
  if padding is not None:
    hu = float(padding) * slope + intercept
    if _TISSUE[0] < hu < _TISSUE[1]:
      remarks.tell(
        f'{place}: PixelPaddingValue stands for {hu:.0f} HU, which is tissue; not heeded'
      )
    else:
      image[stored == padding] = volume.AIR
  return image.T


def like(series: Series, array: np.ndarray) -> np.ndarray:
  """An array on a series' own grid (columns, rows, slices) -> canonical order, (D, H, W)."""
  return volume.to_canonical(array, series.volume.geometry.affine).array


def read_pixels(
  path: str | os.PathLike, folder: str, names: tuple[str, ...], shape: tuple[int, int, int]
) -> np.ndarray:
  """Stored values of slices that need not say where they lie: a mask beside a series.

  Args:
    path: folder or zip archive.
    folder: name of the folder inside it.
    names: file names, as in the series.
    shape: of the series' own grid.

  Returns:
    (columns, rows, slices), the slices in the order of `names`.

  Raises:
    VolumeError: if a slice is missing or of another size.
  """
  import pydicom

  content = _content(pathlib.Path(path), folder)
  array = np.zeros(shape, np.uint16)
  for k, name in enumerate(names):
    if name not in content:
      raise VolumeError(f'{path}: {folder}/{name} is missing; copy it again')
    try:
      pixels = pydicom.dcmread(io.BytesIO(content[name]), force=True).pixel_array
    except Exception as error:
      raise VolumeError(f'{path}: {folder}/{name} cannot be read ({error})') from error
    if pixels.T.shape != shape[:2]:
      raise VolumeError(f'{path}: {folder}/{name} is {pixels.shape}, the scan {shape[1::-1]}')
    array[..., k] = pixels.T
  return array


def _content(path: pathlib.Path, folder: str) -> dict[str, bytes]:
  """File name -> content, of the files in a folder of this name."""
  with opened(path) as open_file:
    held = inventory.look(path, ('dicom',))
    content = {}
    for file in (*held.used, *held.left_out):
      if file.parent.rpartition('/')[2] == folder:
        with open_file(file.name) as stream:
          content[file.name.rpartition('/')[2]] = stream.read()
  return content
