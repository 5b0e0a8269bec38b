"""CT series in DICOM: a folder or a zip archive of slices to a canonical volume."""

import collections
import contextlib
import dataclasses
import io
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from input_pipeline import volume
from input_pipeline.volume import VolumeError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_GAP = 0.1  # slices may lie this part of their distance off an even spacing
_TILT = 1e-3
_TILT_DEGREES = 0.5  # of the gantry; less is round-off
_NO_PIXELS = 'CT without pixels'
_FEW = 4  # slices; what has fewer beside other series is a test bolus or a snapshot
_HEADER = ('Modality', 'SOPClassUID', 'SeriesInstanceUID', 'SeriesNumber', 'ImageType', 'Rows',
           'ImagePositionPatient')  # fmt: skip
_GEOMETRY = ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing')
_ENHANCED_CT = '1.2.840.10008.5.1.4.1.1.2.1'
_SECONDARY_CAPTURE = '1.2.840.10008.5.1.4.1.1.7'


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


@dataclasses.dataclass(frozen=True)
class SeriesFiles:
  """Where the slices of one CT series lie.

  Attributes:
    uid: SeriesInstanceUID.
    number: SeriesNumber, 0 where it has none.
    names: of its files inside the folder or archive.
  """

  uid: str
  number: int
  names: tuple[str, ...]


def find_series(path) -> tuple[list[SeriesFiles], list[str]]:
  """The CT series of a folder or zip archive, by their headers.

  Localizers, screen captures and other modalities are left out; so are series of less than four
  slices, as test boluses are, where there is a longer one.

  Args:
    path: folder, searched to any depth, or `.zip` file.

  Returns:
    The series, in the order of their numbers; and what was left out, one phrase each.

  Raises:
    VolumeError: if a zip archive or the header of a DICOM file in it is damaged.
  """
  path = pathlib.Path(path)
  found, numbers, positions = {}, {}, {}
  others = collections.Counter()
  with _explained(path):
    for name, dataset in _slices(path, others, header=True):
      uid = str(dataset.get('SeriesInstanceUID', ''))
      found.setdefault(uid, []).append(name)
      numbers.setdefault(uid, int(dataset.get('SeriesNumber') or 0))
      positions.setdefault(uid, set()).add(tuple(dataset.get('ImagePositionPatient') or ()))
  series = [SeriesFiles(uid, numbers[uid], tuple(names)) for uid, names in found.items()]
  series.sort(key=lambda one: (one.number, one.uid))
  left_out = _listed(others)
  if any(len(places) >= _FEW for places in positions.values()):
    short = [one for one in series if len(positions[one.uid]) < _FEW]
    series = [one for one in series if one not in short]
    left_out += [f'series {one.number} ({len(positions[one.uid])} positions)' for one in short]
  return series, left_out


def _slices(
  path: pathlib.Path,
  others: collections.Counter,
  names: Collection[str] = (),
  *,
  header: bool = False,
) -> Iterator[tuple[str, Any]]:
  """Yields name and dataset of every CT slice, of `header` without pixels; counts what else is."""
  options = {'stop_before_pixels': True, 'specific_tags': list(_HEADER)} if header else {}
  for name, data in _files(path, names, header=header):
    dataset = _parse(name, data, path, **options)
    if dataset is None:
      continue
    kind = _other_kind(dataset, ('Rows' if header else 'PixelData') in dataset)
    if kind is None:
      yield name, dataset
    else:
      others[kind] += 1


def _listed(others: collections.Counter) -> list[str]:
  return [f'{kind} ({count} file{"s" * (count > 1)})' for kind, count in sorted(others.items())]


def _other_kind(dataset, has_pixels: bool) -> str | None:
  """What a DICOM file is that is no CT slice; None for a slice."""
  modality = str(dataset.get('Modality') or 'CT')
  if modality != 'CT':
    return modality
  if not has_pixels:
    return _NO_PIXELS
  if 'LOCALIZER' in (dataset.get('ImageType') or ()):
    return 'localizer'
  if dataset.get('SOPClassUID') == _ENHANCED_CT:
    return 'enhanced multi-frame CT, which dcm2niix converts'
  if dataset.get('SOPClassUID') == _SECONDARY_CAPTURE and 'ImagePositionPatient' not in dataset:
    return 'screen capture'
  return None


def read_dicom(path, *, series: str | None = None) -> volume.Volume:
  """Reads the CT series of a folder or zip archive.

  Args:
    path: folder, searched to any depth, or `.zip` file; files that are no DICOM images are passed
      over.
    series: SeriesInstanceUID to read where there are several.

  Returns:
    Volume of float32 HU >= -1024, as `volume.read_image`.

  Raises:
    VolumeError: if there is no series or more than one, slices are missing, doubled or of different
      sizes or directions, or a needed field is absent; the message names file and fix.
  """
  return read_series(path, series=series).volume


def read_series(path, *, series: str | None = None, names: Collection[str] = ()) -> Series:
  """As `read_dicom`, with names and headers of the slices.

  Args:
    path: folder or zip archive.
    series: SeriesInstanceUID to read where there are several.
    names: files to look at, as `find_series` lists them; default all.
  """
  path = pathlib.Path(path)
  with _explained(path):
    return _read_series(path, series, names)


def _read_series(path: pathlib.Path, series: str | None, names: Collection[str]) -> Series:
  found: dict[str, list] = {}
  others = collections.Counter()
  for name, dataset in _slices(path, others, names):
    missing = [field for field in (*_GEOMETRY, 'SeriesInstanceUID') if field not in dataset]
    if missing:
      raise VolumeError(f'{path}/{name}: no {", ".join(missing)}; export the series again')
    found.setdefault(str(dataset.SeriesInstanceUID), []).append((name, dataset))
  if series is not None:
    found = {series: found[series]} if series in found else {}
  if not found:
    wanted = f'series {series}' if series else 'DICOM CT slices'
    instead = f' but {", ".join(_listed(others))}' if others else ''
    raise VolumeError(f'{path}: no {wanted} in it{instead}; pass the folder or zip of one series')
  if len(found) > 1:
    lines = ', '.join(f'{uid} ({len(slices)} slices)' for uid, slices in sorted(found.items()))
    raise VolumeError(f'{path}: several series: {lines}; keep one in the folder, or name one')
  if _NO_PIXELS in others:
    warnings.warn(
      f'{path}: {_NO_PIXELS} left out ({others[_NO_PIXELS]} files); copy slices among them again',
      stacklevel=4,
    )
  (slices,) = found.values()
  return _stack(path, slices)


def _files(
  path: pathlib.Path, names: Collection[str] = (), *, header: bool = False
) -> Iterator[tuple[str, bytes | pathlib.Path]]:
  """Yields name and content of every file, or of those named; of `header`, paths in a folder."""
  if path.is_dir():
    files = [path / name for name in names] if names else sorted(path.rglob('*'))
    for file in files:
      name = file.relative_to(path)
      if file.is_file() and not any(part.startswith('.') for part in name.parts):
        yield str(name), file if header else file.read_bytes()
    return
  try:
    with zipfile.ZipFile(path) as archive:
      for name in names or sorted(archive.namelist()):
        if not name.endswith('/') and not name.startswith('__MACOSX'):
          yield name, archive.read(name)
  except (OSError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
    raise VolumeError(f'{path}: neither a folder nor a zip archive ({error})') from error


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
  """Turns what pydicom raises into a VolumeError: it reads values when they are asked for."""
  try:
    yield
  except VolumeError:
    raise
  except Exception as error:  # many kinds, on damaged files
    raise VolumeError(f'{path}: damaged DICOM ({_reason(error)}); copy it again') from error


def _reason(error: Exception) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _parse(name: str, data: bytes | pathlib.Path, path: pathlib.Path, **options):
  """The dataset of a file; None if it is not DICOM."""
  import pydicom

  try:
    return pydicom.dcmread(data if isinstance(data, pathlib.Path) else io.BytesIO(data), **options)
  except pydicom.errors.InvalidDicomError:
    return None
  except Exception as error:  # pydicom raises many kinds on damaged files
    raise VolumeError(f'{path}/{name}: damaged DICOM ({_reason(error)}); copy it again') from error


def _stack(path: pathlib.Path, slices: list) -> Series:
  first_name, first = slices[0]
  direction = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
  normal = np.cross(*direction)
  for name, dataset in slices:
    if (dataset.Rows, dataset.Columns) != (first.Rows, first.Columns):
      raise VolumeError(
        f'{path}/{name}: {dataset.Rows}x{dataset.Columns} pixels, but {first_name} '
        f'{first.Rows}x{first.Columns}; keep one series in the folder'
      )
    turned = np.abs(np.array(dataset.ImageOrientationPatient, float).reshape(2, 3) - direction)
    if turned.max() > _TILT or not np.allclose(dataset.PixelSpacing, first.PixelSpacing, rtol=1e-3):
      raise VolumeError(
        f'{path}/{name}: other direction or pixel spacing than {first_name}; remove localisers'
      )
  slices = sorted(slices, key=lambda item: float(normal @ np.array(item[1].ImagePositionPatient)))
  if len(slices) < 2:
    raise VolumeError(f'{path}: one slice only; pass the whole series')
  positions = np.array([dataset.ImagePositionPatient for _, dataset in slices], float)
  steps = np.diff(positions @ normal)
  names = tuple(pathlib.PurePosixPath(name).name for name, _ in slices)
  usual = float(np.median(steps))
  for i in np.flatnonzero(np.abs(steps - usual) > _GAP * max(usual, 1e-6)):
    what = 'at the same place' if steps[i] < 1e-3 else f'{steps[i]:.2f} mm apart'
    raise VolumeError(
      f'{path}: {names[i]} and {names[i + 1]} lie {what}, others {usual:.2f} mm; a slice is '
      'missing or doubled: export the series again'
    )
  _check_line(path, positions, normal, names)
  array = np.stack([_pixels(path, name, dataset) for name, dataset in slices], -1)
  for _, dataset in slices:
    del dataset.PixelData
  rows, columns = map(float, first.PixelSpacing)
  affine = np.eye(4)
  affine[:3, 0] = direction[0] * columns
  affine[:3, 1] = direction[1] * rows
  affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
  affine[:3, 3] = positions[0]
  affine[:3] = _LPS_TO_RAS @ affine[:3]
  scan = volume.to_canonical(volume.to_hu(array, path), affine, name=path)
  return Series(scan, names, tuple(dataset for _, dataset in slices))


def _check_line(path, positions: np.ndarray, normal: np.ndarray, names: tuple[str, ...]) -> None:
  """Refuses slices that are shifted against each other, warns of a tilted gantry."""
  along = positions @ normal
  step = (positions[-1] - positions[0]) / (along[-1] - along[0])
  off = np.linalg.norm(positions - positions[0] - np.outer(along - along[0], step), axis=1)
  if off.max() > 1:
    raise VolumeError(
      f'{path}: {names[int(off.argmax())]} is shifted by {off.max():.1f} mm within its plane; the '
      'series mixes several reconstructions: export one'
    )
  tilt = float(np.degrees(np.arccos(min(1.0, 1 / np.linalg.norm(step)))))
  if tilt > _TILT_DEGREES:
    warnings.warn(
      f'{path}: the gantry is tilted by {tilt:.1f} degrees; the network sees the anatomy sheared, '
      'expect less or straighten it with dcm2niix',
      stacklevel=2,
    )


def _pixels(path: pathlib.Path, name: str, dataset) -> np.ndarray:
  """(columns, rows) float32 HU; padding is air."""
  try:
    stored = dataset.pixel_array
  except Exception as error:  # a missing decoder or a damaged stream
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
      reason = (
        f'{syntax.name}: {reason}'.rstrip('.') + '; pip install pylibjpeg pylibjpeg-libjpeg '
        'pylibjpeg-openjpeg, or decompress it with gdcmconv --raw'
      )
    raise VolumeError(f'{path}/{name}: pixels cannot be decoded ({reason})') from error
  if stored.ndim != 2:
    raise VolumeError(
      f'{path}/{name}: {stored.ndim} axes; colour and multi-frame are not supported'
    )
  slope = float(getattr(dataset, 'RescaleSlope', 1))
  image = stored.astype(np.float32) * slope + float(getattr(dataset, 'RescaleIntercept', 0))
  padding = getattr(dataset, 'PixelPaddingValue', None)
  if padding is not None:
    image[stored == padding] = volume.AIR
  return image.T


def like(series: Series, array: np.ndarray) -> np.ndarray:
  """An array on a series' own grid (columns, rows, slices) -> canonical order, (D, H, W)."""
  return volume.to_canonical(array, series.volume.geometry.affine).array


def read_pixels(
  path, folder: str, names: tuple[str, ...], shape: tuple[int, int, int]
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

  content = {}
  for name, data in _files(pathlib.Path(path)):
    parts = pathlib.PurePosixPath(name).parts
    if len(parts) > 1 and parts[-2] == folder:
      content[parts[-1]] = data
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
