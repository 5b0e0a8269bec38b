"""Which scans a prediction is asked for, NIfTI or DICOM, and reading them."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence

from input_pipeline import dicom, volume
from mome_jax.errors import UserError

# What people expect to be segmented when it lies in the folder; anything else is passed over.
_OTHER_IMAGES = ('.nrrd', '.nhdr', '.mha', '.mhd', '.mgz', '.hdr', '.img', '.gz')


class ScanError(UserError):
  """There is nothing to segment where the user pointed; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class Case:
  """A scan to be segmented.

  Attributes:
    name: NAME in the outputs' names.
    path: NIfTI file, or folder or zip archive of DICOM files.
    series: which of its files, for DICOM.
    problem: why it cannot be read, where that is known before.
  """

  name: str
  path: pathlib.Path
  series: dicom.SeriesFiles | None = None
  problem: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
  """A scan that was read: `volume`, and for DICOM the `series` it is part of."""

  volume: volume.Volume
  series: dicom.Series | None = None


def find_cases(paths: Sequence[str | os.PathLike]) -> tuple[list[Case], list[str]]:
  """The scans of files and folders.

  Of a folder: `*.nii.gz`, `*.nii` and `*.zip` directly in it, and every DICOM CT series at any
  depth. Images in other formats are listed too, so that they show up as failed rather than not at
  all.

  Returns:
    The cases: files sorted by name, then series; and notes on what was left out.

  Raises:
    ScanError: if a path does not exist, or a folder holds no scan.
  """
  cases, notes = [], []
  for path in map(pathlib.Path, paths):
    if path.is_file():
      found = _of_file(path)
    elif path.is_dir():
      found = _of_folder(path)
    else:
      raise ScanError(f'{path}: no such file or folder; correct --input')
    cases += found[0]
    notes += found[1]
  return cases, notes


def read(
  case: Case, *, assume_spacing: Sequence[float] | None = None, number: int | None = None
) -> Scan:
  """Reads a scan.

  Args:
    case: from `find_cases`.
    assume_spacing: of NIfTI files, as in `volume.read_image`.
    number: of NIfTI files, as in `volume.read_image`.

  Raises:
    VolumeError: if it cannot be read; see `volume.read_image` and `dicom.read_dicom`.
  """
  if case.problem:
    raise volume.VolumeError(case.problem)
  if case.series is None:
    return Scan(volume.read_image(case.path, assume_spacing=assume_spacing, number=number))
  if assume_spacing is not None or number is not None:
    raise volume.VolumeError(f'{case.path}: --assume-spacing and --volume are for NIfTI files')
  series = dicom.read_series(case.path, series=case.series.uid, names=case.series.names)
  return Scan(series.volume, series)


def _of_file(path: pathlib.Path) -> tuple[list[Case], list[str]]:
  if path.suffix.lower() == '.zip':
    cases, left_out = _of_dicom(path, path.stem)
    if cases:
      return cases, _note(path, left_out)
    instead = f' but {", ".join(left_out)}' if left_out else ''
    problem = f'{path}: no DICOM CT series in it{instead}; pass the zip of one'
    return [Case(path.stem, path, problem=problem)], []
  if path.suffix.lower() == '.dcm':
    problem = f'{path}: one DICOM file; pass the folder or zip of its whole series'
    return [Case(path.name, path, problem=problem)], []
  return [Case(volume.stem(path), path)], []


def _of_folder(path: pathlib.Path) -> tuple[list[Case], list[str]]:
  files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith('.'))
  cases, notes = [], []
  for file in files:
    if file.name.lower().endswith((*volume.ENDINGS, *_OTHER_IMAGES, '.zip')):
      found = _of_file(file)
      cases += found[0]
      notes += found[1]
  series, left_out = _of_dicom(path, path.resolve().name)
  cases += series
  notes += _note(path, left_out)
  if not cases:
    instead = f' but {", ".join(left_out)}' if left_out else ''
    raise ScanError(
      f'{path}: no .nii.gz or .nii file directly in this folder, and no DICOM CT series at any '
      f'depth{instead}'
    )
  return cases, notes


def _of_dicom(path: pathlib.Path, base: str) -> tuple[list[Case], list[str]]:
  """The series of a folder or archive, one that is damaged as a failing case; what was left out."""
  try:
    series, left_out = dicom.find_series(path)
  except volume.VolumeError as error:
    return [Case(base, path, problem=str(error))], []
  names = _names(base, series)
  return [Case(name, path, one) for name, one in zip(names, series, strict=True)], left_out


def _note(path: pathlib.Path, left_out: Sequence[str]) -> list[str]:
  return [f'{path}: left out {", ".join(left_out)}'] if left_out else []


def _names(base: str, series: Sequence[dicom.SeriesFiles]) -> list[str]:
  """A name for each series: that of the whole for a single one, else with its folder and number."""
  if len(series) == 1:
    return [base]
  folders = []
  for one in series:
    parents = {str(pathlib.PurePath(name).parent) for name in one.names}
    folder = os.path.commonpath(parents) if '.' not in parents else ''
    folders.append('_'.join(pathlib.PurePath(folder).parts) or base)
  names = _distinct(folders, [f'_s{one.number}' for one in series])
  return _distinct(names, [f'_{one.uid}' for one in series])


def _distinct(names: Sequence[str], endings: Sequence[str]) -> list[str]:
  """The names, those that come more than once with their endings."""
  count = collections.Counter(names)
  return [n + e if count[n] > 1 else n for n, e in zip(names, endings, strict=True)]
