"""CT series in DICOM: a folder or a zip archive of slices to a canonical volume."""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from input_pipeline import volume
from input_pipeline.volume import VolumeError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_GAP = 0.1  # slices may lie this part of their distance off an even spacing
_TILT = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
  """One CT series.

  Attributes:
    volume: float32 HU in canonical order; its geometry's own grid is (columns, rows, slices).
    names: file name of each slice, in the order of the own grid's last axis.
  """

  volume: volume.Volume
  names: tuple[str, ...]


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


def read_series(path, *, series: str | None = None) -> Series:
  """As `read_dicom`, with the names of the slices' files."""
  path = pathlib.Path(path)
  found: dict[str, list] = {}
  for name, data in _files(path):
    dataset = _read_slice(name, data, path)
    if dataset is not None:
      found.setdefault(str(dataset.SeriesInstanceUID), []).append((name, dataset))
  if series is not None:
    found = {series: found[series]} if series in found else {}
  if not found:
    wanted = f'series {series}' if series else 'DICOM CT slices'
    raise VolumeError(f'{path}: no {wanted} in it; pass the folder or zip of one CT series')
  if len(found) > 1:
    lines = ', '.join(f'{uid} ({len(slices)} slices)' for uid, slices in sorted(found.items()))
    raise VolumeError(f'{path}: several series: {lines}; keep one in the folder, or name one')
  (slices,) = found.values()
  return _stack(path, slices)


def _files(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """Yields name and content of every file."""
  if path.is_dir():
    for file in sorted(path.rglob('*')):
      if file.is_file() and not file.name.startswith('.'):
        yield str(file.relative_to(path)), file.read_bytes()
    return
  try:
    with zipfile.ZipFile(path) as archive:
      for name in sorted(archive.namelist()):
        if not name.endswith('/') and not name.startswith('__MACOSX'):
          yield name, archive.read(name)
  except (OSError, zipfile.BadZipFile) as error:
    raise VolumeError(f'{path}: neither a folder nor a zip archive ({error})') from error


def _read_slice(name: str, data: bytes, path: pathlib.Path):
  """The dataset of a CT slice; None for another kind of file."""
  import pydicom

  try:
    dataset = pydicom.dcmread(io.BytesIO(data))
  except pydicom.errors.InvalidDicomError:
    return None
  except Exception as error:  # pydicom raises many kinds on damaged files
    raise VolumeError(f'{path}/{name}: damaged DICOM ({error}); copy it again') from error
  if 'PixelData' not in dataset or getattr(dataset, 'Modality', 'CT') != 'CT':
    return None
  needed = ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'SeriesInstanceUID')
  missing = [field for field in needed if field not in dataset]
  if missing:
    raise VolumeError(f'{path}/{name}: no {", ".join(missing)}; export the series again')
  return dataset


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
  array = np.stack([_pixels(path, name, dataset) for name, dataset in slices], -1)
  rows, columns = map(float, first.PixelSpacing)
  affine = np.eye(4)
  affine[:3, 0] = direction[0] * columns
  affine[:3, 1] = direction[1] * rows
  affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
  affine[:3, 3] = positions[0]
  affine[:3] = _LPS_TO_RAS @ affine[:3]
  return Series(volume.to_canonical(volume.to_hu(array, path), affine, name=path), names)


def _pixels(path: pathlib.Path, name: str, dataset) -> np.ndarray:
  """(columns, rows) float32 HU; padding is air."""
  try:
    stored = dataset.pixel_array
  except Exception as error:  # a missing decoder or a damaged stream
    reason = str(error).splitlines()[0]
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
