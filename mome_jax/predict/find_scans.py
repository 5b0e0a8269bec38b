"""Which scans a prediction is asked for, NIfTI or DICOM, and reading them."""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Generator, Sequence
from typing import BinaryIO

from input_pipeline.ct import dicom, volume
from input_pipeline.files import file_kinds, inventory
from input_pipeline.files.buckets import NO_DISK, is_in_bucket
from mome_jax.errors import UserError, few, printable
from mome_jax.predict import formats

_KINDS = (*file_kinds.VOLUMES, 'zip', 'dicom')
# Folders and files that hold labels beside scans, in the layouts of public datasets.
_LABEL_FOLDERS = ('labels', 'labelstr', 'labelsts', 'masks', 'segmentations')
_LABEL_FILES = ('label', 'labels', 'mask', 'seg', 'segmentation')
_LONGEST = 180  # bytes of a name; disks take 255 with what is before and behind it


class ScanError(UserError):
  """There is nothing to segment where the user pointed; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class ScanFiles:
  """Where a scan to be segmented lies, and what it is called.

  Attributes:
    name: NAME in the outputs' names.
    path: NIfTI, NRRD or MetaImage file, or folder or zip archive of DICOM files.
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
    place = str(self.path) if self.series is None else self.series.place_in(self.path)
    return printable(place)

  @property
  def series_uid(self) -> str:
    """SeriesInstanceUID of DICOM, else empty."""
    return '' if self.series is None else self.series.uid


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedScan:
  """A scan that was read: `volume`, and for DICOM the `series` it is part of."""

  volume: volume.Volume
  series: dicom.Series | None = None


def find_scans(
  paths: Sequence[str | os.PathLike], *, output: str | os.PathLike | None = None
) -> tuple[list[ScanFiles], list[str]]:
  """The scans of files and folders.

  Of a folder: NIfTI, NRRD and MetaImage files, zip archives and DICOM CT series at any depth. What
  looks like a scan and cannot be read is a scan with a `problem`; results of earlier predictions
  and label maps, by the names of public datasets, are left out. A scan that is reached twice counts
  once. Names are those of files, without nnU-Net's channel, or of DICOM folders; where two are
  equal, also but for upper and lower case, their folders come in front. Of a name over 180 bytes
  both ends stay, and a hash.

  Args:
    paths: of files and folders.
    output: folder that is left out where it lies in one of them.

  Returns:
    The scans, by input and name, which UTF-8 can hold; and notes on what was left out.

  Raises:
    ScanError: if there is no path, one does not exist, or a folder holds no scan.
  """
  if not len(paths):
    raise ScanError('inputs is empty; give files or folders of scans, as ["scan.nii.gz"]')
  for path in paths:
    if is_in_bucket(path):
      raise ScanError(f'{path} {NO_DISK}')
  scans, notes = [], []
  output = None if output is None else os.path.realpath(output)
  skip = functools.partial(_skip, output=output, results=formats.possible(''))
  for path in map(pathlib.Path, paths):
    if os.path.isdir(path):
      more, left_out = _of_folder(path, skip)
    elif os.path.lexists(path):
      more, left_out = _of_file(path)
    else:
      raise ScanError(f'{path}: no such file or folder; correct --input')
    scans += more
    notes += [f'{path}: left out {", ".join(left_out)}'] if left_out else []
  scans, again = _once(scans)
  return _distinct(scans), list(map(printable, notes + again))


def read(
  scan: ScanFiles, *, assume_spacing: Sequence[float] | None = None, number: int | None = None
) -> LoadedScan:
  """Reads a scan.

  Args:
    scan: from `find_scans`.
    assume_spacing: of all but DICOM, as in `volume.read_image`.
    number: of all but DICOM, as in `volume.read_image`.

  Raises:
    VolumeError: if it cannot be read; see `volume.read_image` and `dicom.read_dicom`.
  """
  if scan.problem:
    raise volume.VolumeError(scan.problem)
  if scan.series is None:
    return LoadedScan(volume.read_image(scan.path, assume_spacing=assume_spacing, number=number))
  if assume_spacing is not None or number is not None:
    raise volume.VolumeError(
      f'{scan.input}: --assume-spacing and --volume are for NIfTI files, not for DICOM'
    )
  series = dicom.read_series(scan.path, series=scan.series)
  return LoadedScan(series.volume, series)


def open_files(scan: ScanFiles) -> Generator[BinaryIO, None, None]:
  """The files that a scan is read from, each open until the next one is asked for.

  Raises:
    OSError, VolumeError: if one cannot be opened.
  """
  if scan.series is None:
    for path in inventory.halves(scan.path):
      with path.open('rb') as stream:
        yield stream
    return
  with dicom.opened(scan.path) as open_file:
    for name in scan.series.names:
      with open_file(name) as stream:
        yield stream


def digests(scan: ScanFiles) -> list[bytes]:
  """SHA-256 of each file that a scan is read from.

  Raises:
    OSError, VolumeError: if one cannot be read.
  """
  return [
    # BinaryIO does not declare `readinto`, which every open file has.
    hashlib.file_digest(stream, 'sha256').digest()  # type: ignore[arg-type]
    for stream in open_files(scan)
  ]


# ---------------------------------------------------------------------------- finding
def _of_file(path: pathlib.Path) -> tuple[list[ScanFiles], list[str]]:
  file = inventory.look_at(path)
  if file.kind == 'zip' and not file.problem:
    return _of_zip(path)
  problem = file.problem
  if file.kind == 'dicom' and not problem:
    problem = f'{path}: one DICOM file; pass the folder or zip of its whole series'
  if file.kind == 'other':
    kinds = 'NIfTI, NRRD, MetaImage, a DICOM folder or a .zip'
    problem = f'{path}: is no scan ({file.reason}); expected {kinds}'
  siblings = [path.name]
  if file.kind in file_kinds.VOLUMES:
    siblings += [name for name in os.listdir(path.parent) if inventory.is_volume_name(name)]
  name = inventory.case_names(map(inventory.stem, siblings))[inventory.stem(path.name)]
  return [ScanFiles(name, path, problem=problem)], []


def _of_zip(path: pathlib.Path, *, named: bool = True) -> tuple[list[ScanFiles], list[str]]:
  """The scans of an archive; one without any fails if it was named, or holds NIfTI."""
  try:
    study = dicom.find_series(path)
  except volume.VolumeError as error:
    return [ScanFiles(path.stem, path, problem=str(error))], []
  scans = _of_study(path, path.stem, study)
  if scans:
    return scans, list(study.left_out)
  instead = f' but {", ".join(study.left_out)}' if study.left_out else ''
  if not named and 'NIfTI' not in instead:
    return [], ['archive without CT']
  problem = f'{path}: no DICOM CT series in it{instead}; pass the zip of one, or unpack it'
  return [ScanFiles(path.stem, path, problem=problem)], []


def _of_folder(
  path: pathlib.Path, skip: Callable[[pathlib.Path], str]
) -> tuple[list[ScanFiles], list[str]]:
  try:
    held = inventory.look(path, _KINDS, skip=skip)
  except inventory.FolderError as error:
    raise ScanError(str(error)) from error
  study = dicom.find_series(path, held)
  scans, left_out = [], list(study.left_out)
  stems = collections.defaultdict(list)
  for file in (*held.used, *held.failed):
    if file.kind in file_kinds.VOLUMES:
      stems[file.parent].append(inventory.stem(file.path.name))
  names = {folder: inventory.case_names(texts) for folder, texts in stems.items()}
  for file in (*held.used, *held.failed):
    if file.kind in file_kinds.VOLUMES:
      name = names[file.parent][inventory.stem(file.path.name)]
      scans.append(ScanFiles(name, file.path, problem=file.problem))
    elif file.kind == 'zip' and not file.problem:
      more, inside = _of_zip(file.path, named=False)
      scans += more
      left_out += [
        f'{phrase} in {file.name}' if more else f'{file.name} ({phrase})' for phrase in inside
      ]
    elif file.kind != 'dicom':
      scans.append(ScanFiles(file.path.name, file.path, problem=file.problem))
  scans.sort(key=lambda scan: scan.path)
  scans += _of_study(path, path.resolve().name, study)
  if not scans:
    instead = f' but {", ".join(left_out)}' if left_out else ''
    raise ScanError(
      f'{path}: no .nii.gz or .nii file and no DICOM CT series at any depth, nor NRRD or '
      f'MetaImage{instead}; correct --input'
    )
  return scans, left_out


def _of_study(path: pathlib.Path, base: str, study: dicom.Study) -> list[ScanFiles]:
  """Its series, and for each folder with files that cannot be read and belong to none a scan."""
  names = _series_names(base, study.series)
  scans = [
    ScanFiles(name, path, one, one.problem) for name, one in zip(names, study.series, strict=True)
  ]
  failed = collections.defaultdict(list)
  for name, problem in {**study.failed, **study.unsupported}.items():
    failed[os.path.dirname(name)].append((name, problem))
  for folder, [(name, problem), *more] in failed.items():
    others = f' (and {len(more)} more)' if more else ''
    title = os.path.basename(folder) or base
    if not more or title in names:  # the name of a scan does not depend on what failed beside it
      title = os.path.basename(name)
    scans.append(ScanFiles(title, path / name.lstrip('/'), problem=problem + others))
  return scans


def _skip(path: pathlib.Path, output: str | None, results: Sequence[str]) -> str:
  """Why a file or folder in an input folder holds no scans; '' if it may."""
  name = path.name.lower()
  if output and os.path.realpath(path) == output:
    return 'output folder'
  for ending in results:
    if path.name.endswith(ending):
      legend = path.with_name(path.name.removesuffix(ending) + '_seg.json')
      if legend.is_file():
        return 'result of predict'
  if inventory.stem(name) in _LABEL_FILES and name not in _LABEL_FILES:
    return 'label map'
  if name.endswith('.seg.nrrd') or (name in _LABEL_FOLDERS and path.is_dir()):
    return 'label map'
  return ''


def _once(scans: Sequence[ScanFiles]) -> tuple[list[ScanFiles], list[str]]:
  """The scans without those that are another again: one path, or a series and its archive."""
  kept, notes, again = [], [], dict[str, None]()
  alike: dict[tuple, list[ScanFiles]] = collections.defaultdict(list)
  content = functools.cache(lambda scan: frozenset(digests(scan)))
  for scan in scans:
    series, place = scan.series, os.path.realpath(scan.path)
    key = (series.uid, series.slices) if series and series.slices else (place, series or scan.name)
    for other in alike[key]:
      here = (os.path.realpath(other.path), other.series) == (place, series)
      if here or (series and content(scan) == content(other)):  # identifiers alone may be made up
        if scan.input == other.input:
          again[scan.input] = None
        else:
          notes.append(f'{scan.input}: left out, it is the same scan as {other.input}')
        break
    else:
      alike[key].append(scan)
      kept.append(scan)
  if again:
    notes.append(
      f'{few(again)}: given more than once, as in a folder and in one above it; counts once'
    )
  return kept, notes


# ---------------------------------------------------------------------------- names
def _series_names(base: str, series: Sequence[dicom.SeriesFiles]) -> list[str]:
  """A name for each series: that of the whole for a single one, else with its folder and number."""
  if len(series) == 1:
    return [base]
  names = ['_'.join(one.folder.split('/')) or base for one in series]
  for endings in (
    [f'_s{one.number}' for one in series],
    [one.part and f'_{one.part}' for one in series],
    [f'_{re.sub("[^0-9.]", "-", one.uid)}' for one in series],
    [f'_{number}' for number in range(1, len(series) + 1)],
  ):
    groups = collections.defaultdict(set)
    for name, ending in zip(names, endings, strict=True):
      groups[_alike(name)].add(ending)
    names = [n + e * (len(groups[_alike(n)]) > 1) for n, e in zip(names, endings, strict=True)]
  return names


def _alike(name: str) -> str:
  """What names have in common that are one name on some disks."""
  return unicodedata.normalize('NFC', name).casefold()


def _fitting(name: str) -> str:
  """The name, fit for UTF-8 and with room for endings: of a long one both ends, and a hash."""
  name = printable(name)
  code = name.encode()
  if len(code) <= _LONGEST:
    return name
  half = _LONGEST // 2 - 5
  first, last = (part.decode(errors='ignore') for part in (code[:half], code[-half:]))
  return f'{first}_{hashlib.sha256(code).hexdigest()[:8]}_{last}'


def _distinct(scans: Sequence[ScanFiles]) -> list[ScanFiles]:
  """The scans, their folders in front of equal names; what stays equal is a problem."""
  parents = [pathlib.Path(os.path.abspath(scan.path)).parent.parts[1:] for scan in scans]
  names = [scan.name for scan in scans]
  depth = 0
  while True:
    places = collections.defaultdict(set)
    for scan, name, above in zip(scans, names, parents, strict=True):
      places[_alike(name)].add((_alike(scan.name), above))
    if all(len(here) == 1 for here in places.values()) or depth > max(map(len, parents)):
      break
    depth += 1
    names = [
      '_'.join([*above[-depth:], scan.name]) if len(places[_alike(name)]) > 1 else name
      for scan, name, above in zip(scans, names, parents, strict=True)
    ]
  names = list(map(_fitting, names))
  twins = collections.defaultdict(list)
  for scan, name in zip(scans, names, strict=True):
    twins[_alike(name)].append(scan)
  made = []
  for scan, name in zip(scans, names, strict=True):
    same, problem = twins[_alike(name)], scan.problem
    if len(same) > 1 and not problem:
      files = dict.fromkeys(twin.path.name for twin in same)
      files = files if len(files) > 1 else dict.fromkeys(twin.input for twin in same)
      problem = f'{" and ".join(files)} would both be written as {name}_seg; rename one'
    made.append(dataclasses.replace(scan, name=name, problem=printable(problem)))
  return made
