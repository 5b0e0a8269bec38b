"""Which scans a prediction is asked for, NIfTI or DICOM, and reading them."""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from input_pipeline import inventory
from input_pipeline.ct import dicom, volume
from mome_jax.errors import UserError

_KINDS = ('nifti', 'zip', 'dicom')
# Folders and files that hold labels beside scans, in the layouts of public datasets.
_LABEL_FOLDERS = ('labels', 'labelstr', 'labelsts', 'masks', 'segmentations')
_LABEL_FILES = ('label', 'labels', 'mask', 'seg', 'segmentation')
_RESULTS = ('_seg.nii.gz', '_seg.dcm', '_masks', '_probabilities')  # of `predict`


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

  @property
  def input(self) -> str:
    """Where the scan itself lies: of DICOM its folder, or first file, in the folder or archive."""
    return str(self.path) if self.series is None else self.series.place_in(self.path)


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
  """A scan that was read: `volume`, and for DICOM the `series` it is part of."""

  volume: volume.Volume
  series: dicom.Series | None = None


def find_cases(
  paths: Sequence[str | os.PathLike], *, output: str | os.PathLike | None = None
) -> tuple[list[Case], list[str]]:
  """The scans of files and folders.

  Of a folder: NIfTI files, zip archives and DICOM CT series at any depth. What looks like a scan
  and cannot be read is a case with a `problem`; results of earlier predictions and label maps, by
  the names of public datasets, are left out. A scan that is reached twice is one case. Names are
  those of files, without nnU-Net's channel, or of DICOM folders; where two are equal, their folders
  come in front.

  Args:
    paths: of files and folders.
    output: folder that is left out where it lies in one of them.

  Returns:
    The cases, by input and name; and notes on what was left out.

  Raises:
    ScanError: if a path does not exist, or a folder holds no scan.
  """
  cases, notes = [], []
  skip = functools.partial(_skip, output=output and os.path.realpath(output))
  for path in map(pathlib.Path, paths):
    if os.path.isdir(path):
      more, left_out = _of_folder(path, skip)
    elif os.path.lexists(path):
      more, left_out = _of_file(path)
    else:
      raise ScanError(f'{path}: no such file or folder; correct --input')
    cases += more
    notes += [f'{path}: left out {", ".join(left_out)}'] if left_out else []
  cases, again = _once(cases)
  return _distinct(cases), notes + again


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
    raise volume.VolumeError(f'{case.input}: --assume-spacing and --volume are for NIfTI files')
  series = dicom.read_series(case.path, series=case.series)
  return Scan(series.volume, series)


def open_files(case: Case) -> Iterator[BinaryIO]:
  """The files that a case is read from, each open until the next one is asked for.

  Raises:
    OSError, VolumeError: if one cannot be opened.
  """
  if case.series is None:
    for path in inventory.halves(case.path):
      with path.open('rb') as stream:
        yield stream
    return
  with dicom.opened(case.path) as open_file:
    for name in case.series.names:
      with open_file(name) as stream:
        yield stream


# ---------------------------------------------------------------------------- finding
def _of_file(path: pathlib.Path) -> tuple[list[Case], list[str]]:
  file = inventory.look_at(path)
  if file.kind == 'zip' and not file.problem:
    return _of_zip(path)
  problem = file.problem
  if file.kind == 'dicom' and not problem:
    problem = f'{path}: one DICOM file; pass the folder or zip of its whole series'
  siblings = [path.name]
  if file.kind == 'nifti':
    siblings += [name for name in os.listdir(path.parent) if inventory.is_nifti_name(name)]
  name = inventory.case_names(map(inventory.stem, siblings))[inventory.stem(path.name)]
  return [Case(name, path, problem=problem)], []


def _of_zip(path: pathlib.Path, *, named: bool = True) -> tuple[list[Case], list[str]]:
  """The scans of an archive; one without any fails if it was named, or holds NIfTI."""
  try:
    study = dicom.find_series(path)
  except volume.VolumeError as error:
    return [Case(path.stem, path, problem=str(error))], []
  cases = _of_study(path, path.stem, study)
  if cases:
    return cases, list(study.left_out)
  instead = f' but {", ".join(study.left_out)}' if study.left_out else ''
  if not named and 'NIfTI' not in instead:
    return [], ['archive without CT']
  problem = f'{path}: no DICOM CT series in it{instead}; pass the zip of one, or unpack it'
  return [Case(path.stem, path, problem=problem)], []


def _of_folder(
  path: pathlib.Path, skip: Callable[[pathlib.Path], str]
) -> tuple[list[Case], list[str]]:
  try:
    held = inventory.look(path, _KINDS, skip=skip)
  except OSError as error:
    raise ScanError(f'{path}: cannot be opened ({error.strerror}); correct --input') from error
  study = dicom.find_series(path, held)
  cases, left_out = [], list(study.left_out)
  stems = collections.defaultdict(list)
  nifti = [file for file in (*held.used, *held.failed) if file.kind == 'nifti']
  for file in nifti:
    stems[file.parent].append(inventory.stem(file.path.name))
  names = {folder: inventory.case_names(texts) for folder, texts in stems.items()}
  for file in (*held.used, *held.failed):
    if file.kind == 'nifti':
      name = names[file.parent][inventory.stem(file.path.name)]
      cases.append(Case(name, file.path, problem=file.problem))
    elif file.kind == 'zip' and not file.problem:
      more, inside = _of_zip(file.path, named=False)
      cases += more
      left_out += [
        f'{phrase} in {file.name}' if more else f'{file.name} ({phrase})' for phrase in inside
      ]
    elif file.kind != 'dicom':
      cases.append(Case(file.path.name, file.path, problem=file.problem))
  cases.sort(key=lambda case: case.path)
  cases += _of_study(path, path.resolve().name, study)
  if not cases:
    instead = f' but {", ".join(left_out)}' if left_out else ''
    raise ScanError(
      f'{path}: no .nii.gz or .nii file and no DICOM CT series at any depth{instead}; correct '
      '--input'
    )
  return cases, left_out


def _of_study(path: pathlib.Path, base: str, study: dicom.Study) -> list[Case]:
  """Its series, and for each folder with files that cannot be read and belong to none a case."""
  names = _series_names(base, study.series)
  cases = [
    Case(name, path, one, one.problem) for name, one in zip(names, study.series, strict=True)
  ]
  failed = collections.defaultdict(list)
  for name, problem in study.failed.items():
    failed[os.path.dirname(name)].append((name, problem))
  for folder, [(name, problem), *more] in failed.items():
    others = f' (and {len(more)} more)' if more else ''
    title = os.path.basename(name if not more else folder) or base
    cases.append(Case(title, path / name, problem=problem + others))
  return cases


def _skip(path: pathlib.Path, output: str | None) -> str:
  """Why a file or folder in an input folder holds no scans; '' if it may."""
  name = path.name.lower()
  if output and os.path.realpath(path) == output:
    return 'output folder'
  for ending in _RESULTS:
    legend = path.with_name(path.name[: -len(ending)] + '_seg.json')
    if path.name.endswith(ending) and legend.is_file():
      return 'result of predict'
  if inventory.stem(name) in _LABEL_FILES and name not in _LABEL_FILES:
    return 'label map'
  if name.endswith('.seg.nrrd') or (name in _LABEL_FOLDERS and path.is_dir()):
    return 'label map'
  return ''


def _once(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
  """The cases without those that are another again: one path, or a series and its archive."""
  kept, notes, alike = [], [], collections.defaultdict(list)
  digest = functools.cache(_digest)
  for case in cases:
    series, place = case.series, os.path.realpath(case.path)
    key = (series.uid, series.slices) if series and series.slices else (place, series or case.name)
    for other in alike[key]:
      here = (os.path.realpath(other.path), other.series) == (place, series)
      if here or (series and digest(case) == digest(other)):  # identifiers alone may be made up
        notes.append(f'{case.input}: left out, it is the same scan as {other.input}')
        break
    else:
      alike[key].append(case)
      kept.append(case)
  return kept, notes


def _digest(case: Case) -> frozenset[bytes]:
  """Digests of the slices of a series."""
  return frozenset(hashlib.file_digest(file, 'sha256').digest() for file in open_files(case))


# ---------------------------------------------------------------------------- names
def _series_names(base: str, series: Sequence[dicom.SeriesFiles]) -> list[str]:
  """A name for each series: that of the whole for a single one, else with its folder and number."""
  if len(series) == 1:
    return [base]
  names = ['_'.join(pathlib.PurePath(one.folder).parts) or base for one in series]
  for endings in (
    [f'_s{one.number}' for one in series],
    [one.part and f'_{one.part}' for one in series],
    [f'_{one.uid}' for one in series],
    [f'_{number}' for number in range(1, len(series) + 1)],
  ):
    groups = collections.defaultdict(set)
    for name, ending in zip(names, endings, strict=True):
      groups[name].add(ending)
    names = [n + e * (len(groups[n]) > 1) for n, e in zip(names, endings, strict=True)]
  return names


def _distinct(cases: Sequence[Case]) -> list[Case]:
  """The cases, their folders in front of equal names; what stays equal is a problem."""
  parents = [pathlib.Path(os.path.abspath(case.path)).parent.parts[1:] for case in cases]
  names = [case.name for case in cases]
  twins = collections.defaultdict(list)
  for case, above in zip(cases, parents, strict=True):
    twins[case.name, above].append(case)
  depth = 0
  while True:
    places = collections.defaultdict(set)
    for case, name, above in zip(cases, names, parents, strict=True):
      places[name].add((case.name, above))
    if all(len(here) == 1 for here in places.values()) or depth > max(map(len, parents)):
      break
    depth += 1
    names = [
      '_'.join([*above[-depth:], case.name]) if len(places[name]) > 1 else name
      for case, name, above in zip(cases, names, parents, strict=True)
    ]
  made = []
  for case, name, above in zip(cases, names, parents, strict=True):
    same = dict.fromkeys(twin.path.name for twin in twins[case.name, above])
    problem = case.problem
    if len(twins[case.name, above]) > 1 and not problem:
      problem = f'{" and ".join(same)} would both be written as {name}_seg; rename one'
    made.append(dataclasses.replace(case, name=name, problem=problem))
  return made
