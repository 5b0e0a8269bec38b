"""Which CT series a folder or zip archive of DICOM files holds, by their headers."""

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from input_pipeline import remarks
from input_pipeline.ct.volume import VolumeError
from input_pipeline.files import inventory

HUSH = remarks.Hush('pydicom')  # of odd values, mostly in fields that are not used
_FEW = 4  # slices; what has fewer beside others of its study is a test bolus or a snapshot
# Enhanced CT, and its legacy converted form: one file holds all slices.
_ENHANCED_CT = '1.2.840.10008.5.1.4.1.1.2.1', '1.2.840.10008.5.1.4.1.1.2.2'
_FRAMES = 'enhanced multi-frame CT'
_CT = '1.2.840.10008.5.1.4.1.1.2'
_SECONDARY_CAPTURE = '1.2.840.10008.5.1.4.1.1.7'
# What tells the phases of one series apart, best first, and how it stands in a scan's name.
_PHASES = {
  'AcquisitionNumber': 'a',
  'TemporalPositionIdentifier': 't',
  'TemporalPositionIndex': 't',
  'NominalPercentageOfCardiacPhase': 'c',
  'TriggerTime': 'c',
  'ConvolutionKernel': '',
  'ImageType': '',
  'KVP': 'kv',
  'AcquisitionTime': 't',
}
_HEADER = ('Modality', 'SOPClassUID', 'SOPInstanceUID', 'StudyInstanceUID', 'SeriesInstanceUID',
           'SeriesNumber', 'Rows', 'ImagePositionPatient', *_PHASES)  # fmt: skip
_UID = re.compile(rb'\x20\x00\x0e\x00(?:UI)?..(?:\0\0)?([0-9.]{5,64})', re.DOTALL)


class SliceError(VolumeError):
  """What is wrong with one DICOM file; the message starts after its name."""


def _folder(name: str) -> str:
  """The folder inside of a file; some programs begin the names in an archive with a slash."""
  return os.path.dirname(name).lstrip('/')


@dataclasses.dataclass(frozen=True)
class SeriesFiles:
  """Where the slices of one CT scan lie: a series, or one phase of it.

  Attributes:
    uid: SeriesInstanceUID, '' where it has none.
    number: SeriesNumber, 0 where it has none.
    names: of its files inside the folder or archive.
    part: what tells it from other phases of its series, a word for file names; '' if it is all.
    problem: why it cannot be read, where that is known before.
    shared: whether its folder holds other scans too.
    slices: SOPInstanceUIDs in order of their text, empty where one is missing.
    places: how many places its slices lie at.
    study: StudyInstanceUID, '' where it has none.
  """

  uid: str
  number: int
  names: tuple[str, ...]
  part: str = ''
  problem: str = ''
  shared: bool = False
  slices: tuple[str, ...] = ()
  places: int = 0
  study: str = ''

  @functools.cached_property
  def folders(self) -> frozenset[str]:
    """The folders inside that its files lie in, '' for the outermost."""
    return frozenset(_folder(name) for name in self.names)

  @property
  def folder(self) -> str:
    """The folder inside that holds all its files, '' for the outermost."""
    return os.path.commonpath(self.folders)

  def place_in(self, path: str | os.PathLike) -> str:
    """Where it lies: its folder, or its first file where that holds other scans."""
    inside = self.names[0].lstrip('/') if self.shared else self.folder
    return os.path.join(path, inside) if inside else str(path)


@dataclasses.dataclass(frozen=True)
class Study:
  """What a folder or archive holds.

  Attributes:
    series: in the order of their numbers.
    left_out: what else there is, one phrase each.
    failed: name -> problem, of files that cannot be read and belong to no series that can.
    unsupported: name -> problem, of files that are whole scans of a kind that is not read.
  """

  series: tuple[SeriesFiles, ...]
  left_out: tuple[str, ...]
  failed: Mapping[str, str]
  unsupported: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Slice:
  name: str
  study: str
  uid: str
  number: int
  position: tuple[float, ...]
  instance: str  # SOPInstanceUID
  phase: Mapping[str, str]

  @property
  def folder(self) -> str:
    return _folder(self.name)


def find_series(path: str | os.PathLike, files: inventory.Inventory | None = None) -> Study:
  """The CT series of a folder or zip archive.

  A series with several slices at one place is taken apart: by folder, acquisition, phase or
  whatever else tells them apart. Localizers, screen captures and other modalities are left out; so
  are series of less than four slices, as test boluses are, where their study has a longer one.
  A file that cannot be read fails its series, or where its header does not say which that is, the
  only one in its folder. A slice without SeriesInstanceUID is of the only series in its folder; it
  fails where there are several.

  Args:
    path: folder, searched to any depth, or `.zip` file.
    files: what is there, where that is known; 'dicom' must have been asked for.

  Raises:
    VolumeError: if it is neither a folder nor a zip archive, or cannot be listed.
  """
  path = pathlib.Path(path)
  with opened(path) as open_file, HUSH:
    try:
      files = inventory.look(path, ('dicom',)) if files is None else files
    except inventory.FolderError as error:
      raise VolumeError(str(error)) from error
    slices, kinds, bad = _headers(files, open_file)
    unread = {file.name: file.problem for file in files.failed if file.kind == 'dicom'}
    owners: dict[str, Collection[str]] = {name: _uids_in(name, open_file) for name in bad}
  groups, strays = _by_uid(slices)
  unread |= {
    slice_.name: f'{path / slice_.name}: no SeriesInstanceUID, and its folder holds several '
    'series; export it again, or keep one series in the folder'
    for slice_ in strays
  }
  owners |= dict.fromkeys(unread, ())
  scans = [part for group in groups for part in _phases(group)]
  scans, failed = _blame(scans, bad | unread, owners)
  unsupported = {
    name: f'{path / name}: {_FRAMES}, which is not read; convert it to NIfTI with dcm2niix'
    for name, kind in kinds.items()
    if kind == _FRAMES
  }
  others = [kind for kind in kinds.values() if kind != _FRAMES]
  left_out = inventory.phrases([*files.left_out, *others])
  long = {scan.study for scan in scans if scan.places >= _FEW}
  short = [s for s in scans if s.places < _FEW and s.study in long and not s.problem]
  scans = [scan for scan in scans if scan not in short]
  left_out += [f'series {scan.number} ({scan.places} positions)' for scan in short]
  scans = _mark_shared(scans)
  scans.sort(key=lambda scan: (scan.number, scan.folder, scan.uid, scan.part, scan.names))
  return Study(tuple(scans), tuple(left_out), failed, unsupported)


def _headers(
  files: inventory.Inventory, open_file: Callable[[str], BinaryIO]
) -> tuple[list[_Slice], dict[str, str], dict[str, str]]:
  """The slices; by name, what other DICOM files are; and what is wrong with those not read."""
  slices: list[_Slice] = []
  kinds: dict[str, str] = {}
  bad: dict[str, str] = {}
  for file in files.used:
    if file.kind != 'dicom':
      continue
    try:
      kind, slice_ = _header(file.name, open_file)
    except SliceError as error:
      bad[file.name] = f'{file.path}: {error}'
      continue
    if slice_ is None:
      kinds[file.name] = kind
    else:
      slices.append(slice_)
  return slices, kinds, bad


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Callable[[str], BinaryIO]]:
  """Name -> open file, for the files of a folder or zip archive.

  Raises:
    VolumeError: if it is neither.
  """
  if path.is_dir():
    yield lambda name: (path / name).open('rb')
    return
  try:
    archive = zipfile.ZipFile(path)
  except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
    raise VolumeError(f'{path}: neither a folder nor a zip archive ({error})') from error
  with archive:
    yield lambda name: io.BytesIO(archive.read(name))


def parse(name: str, open_file: Callable[[str], BinaryIO], **options) -> Any:
  """The pydicom dataset of a file, read even without preamble, then checked.

  Raises:
    SliceError: if it is no DICOM.
  """
  import pydicom

  try:
    with open_file(name) as stream, HUSH:
      dataset = pydicom.dcmread(stream, force=True, **options)
      sound = any(dataset.get(field) for field in ('SOPClassUID', 'Modality', 'SeriesInstanceUID'))
  except MemoryError:
    raise
  except Exception as error:  # many kinds, on damaged files
    raise SliceError(f'damaged DICOM ({reason(error)}); copy it again') from error
  if not sound:
    raise SliceError('cannot be read as DICOM; copy it again')
  if 'TransferSyntaxUID' not in dataset.file_meta:
    implicit, little = dataset.original_encoding
    kinds = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
    big = pydicom.uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = kinds[not implicit] if little else big
  return dataset


def reason(error: Exception) -> str:
  """What an error of pydicom says, on one line."""
  return ' '.join(str(error).split()) or type(error).__name__


def value(dataset: Any, field: str) -> Any:
  """A field's value, None also where it is there and empty."""
  stored = dataset.get(field)
  empty = stored is None or (hasattr(stored, '__len__') and not len(stored))
  return None if empty else stored


def series_number(dataset: Any) -> int:
  """The SeriesNumber of a file; 0 where it has none, or what is no number."""
  try:
    return int(value(dataset, 'SeriesNumber') or 0)
  except (TypeError, ValueError):  # anonymised
    return 0


def other_kind(dataset: Any, pixels: str) -> str:
  """What a DICOM file is that is no CT slice; '' for a slice.

  Args:
    dataset: of pydicom.
    pixels: a field that files with pixels have.

  Raises:
    SliceError: if it is a CT slice without pixels, or does not say what it is.
  """
  modality = str(value(dataset, 'Modality') or 'CT')
  kind = value(dataset, 'SOPClassUID')
  without_pixels = value(dataset, pixels) is None
  # Of a file that is cut off, the part before the header may be all that says what it was.
  if without_pixels and _CT in (kind, dataset.file_meta.get('MediaStorageSOPClassUID')):
    raise SliceError('a CT slice without pixels; copy it again')
  if len(modality) > 16 or not modality.isprintable():  # no code string: a damaged length
    raise SliceError('damaged DICOM (Modality); copy it again')
  if modality != 'CT':
    return modality
  if without_pixels:
    return 'CT without pixels'
  if 'LOCALIZER' in (value(dataset, 'ImageType') or ()):
    return 'localizer'
  if kind in _ENHANCED_CT:
    return _FRAMES
  if kind == _SECONDARY_CAPTURE and value(dataset, 'ImagePositionPatient') is None:
    return 'screen capture'
  return ''


def _header(name: str, open_file) -> tuple[str, _Slice | None]:
  """What a file is that is no CT slice, or the slice."""
  dataset = parse(name, open_file, stop_before_pixels=True, specific_tags=list(_HEADER))
  try:
    kind = other_kind(dataset, 'Rows')
    if kind:
      return kind, None
    read = lambda field: value(dataset, field)
    study, uid, instance = (
      str(read(f'{of}InstanceUID') or '') for of in ('Study', 'Series', 'SOP')
    )
    number, position = series_number(dataset), read('ImagePositionPatient') or ()
    phase = {field: str(read(field) or '') for field in _PHASES}
    return '', _Slice(name, study, uid, number, tuple(map(float, position)), instance, phase)
  except SliceError:
    raise
  except Exception as error:  # pydicom reads values when they are asked for
    raise SliceError(f'damaged DICOM ({reason(error)}); copy it again') from error


def _uids_in(name: str, open_file) -> set[str]:
  """What may be the SeriesInstanceUID of a file that cannot be parsed."""
  try:
    with open_file(name) as stream:
      return {uid.decode() for uid in _UID.findall(stream.read())}
  except Exception:  # as damaged as can be
    return set()


def _by_uid(slices: Sequence[_Slice]) -> tuple[list[list[_Slice]], list[_Slice]]:
  """The slices of each series, and those without a UID that may be of several.

  Without a UID they are of the only series in their folder, or where it holds none, one of their
  own.
  """
  uids = collections.defaultdict(set)
  for slice_ in slices:
    if slice_.uid:
      uids[slice_.folder].add(slice_.uid)
  groups, strays = collections.defaultdict(list), []
  for slice_ in slices:
    candidates = {slice_.uid} if slice_.uid else uids.get(slice_.folder, {f'/{slice_.folder}'})
    if len(candidates) > 1:
      strays.append(slice_)
    else:
      groups[min(candidates)].append(slice_)
  return list(groups.values()), strays


def _phases(group: Sequence[_Slice]) -> list[SeriesFiles]:
  """One scan for each phase of a series, where several slices lie at one place, or take turns."""
  doubled = _doubled(group)
  for field in ('', *_PHASES):
    parts: dict[str, list[_Slice]] = collections.defaultdict(list)
    for slice_ in group:
      parts[_phase(slice_, field)].append(slice_)
    whole = len(parts) > 1 and not any(_doubled(part) or len(part) < 2 for part in parts.values())
    if whole and (doubled or (len(parts) <= len(group) / _FEW and _take_turns(group, field))):
      return [_scan(part, field, text) for text, part in sorted(parts.items())]
  return [_scan(group)]


def _phase(slice_: _Slice, field: str) -> str:
  """What a field says of a slice; '' is its folder."""
  return slice_.phase[field] if field else slice_.folder


def _take_turns(group: Sequence[_Slice], field: str) -> bool:
  """Whether along the scan most slices are of another phase than the one before.

  Those of an acquisition for each rotation, or for each part of the body, follow each other; files
  may lie in any folders.
  """
  places = np.array([slice_.position for slice_ in group if len(slice_.position) == 3])
  if not field or len(places) < len(group):
    return False
  order = places[:, int(np.ptp(places, axis=0).argmax())].argsort()
  phases = [_phase(group[n], field) for n in order]
  turns = sum(one != other for one, other in itertools.pairwise(phases))
  return turns > len(group) / 2


def _doubled(slices: Sequence[_Slice]) -> bool:
  """Whether several slices lie at one place; copies of one do not count."""
  different = {(slice_.position, slice_.instance or slice_.name) for slice_ in slices}
  return len(different) > len({slice_.position for slice_ in slices})


def _scan(slices: Sequence[_Slice], field: str = '', text: str = '') -> SeriesFiles:
  word = re.sub(r'[^0-9A-Za-z.]+', '-', text).strip('-.')[:40] or 'none'
  part = f'{_PHASES[field]}{word}' if field else ''
  names = tuple(slice_.name for slice_ in slices)
  instances = {slice_.instance for slice_ in slices}
  known = () if '' in instances else tuple(sorted(instances))
  places = len({slice_.position for slice_ in slices})
  first = next((slice_ for slice_ in slices if slice_.uid), slices[0])
  return SeriesFiles(
    first.uid, first.number, names, part, slices=known, places=places, study=first.study
  )


def _blame(
  scans: Sequence[SeriesFiles], bad: Mapping[str, str], owners: Mapping[str, Collection[str]]
) -> tuple[list[SeriesFiles], dict[str, str]]:
  """The scans, those that miss a file with its problem; and the problems of files of none."""
  problems, failed = collections.defaultdict(list), {}
  for name, problem in bad.items():
    folder = _folder(name)
    beside = [scan for scan in scans if folder in scan.folders]
    same = [scan for scan in scans if scan.uid in owners[name]]
    hit = [scan for scan in same if scan in beside] or same or (beside if len(beside) == 1 else [])
    for scan in hit:
      problems[scan].append(problem)
    if not hit:
      failed[name] = problem
  made = []
  for scan in scans:
    first, *more = problems[scan] or ['']
    others = f' (and {len(more)} more)' if more else ''
    made.append(dataclasses.replace(scan, problem=first + others))
  return made, failed


def _mark_shared(scans: Sequence[SeriesFiles]) -> list[SeriesFiles]:
  folders = [scan.folders | {scan.folder} for scan in scans]
  counts = collections.Counter(folder for several in folders for folder in several)
  return [
    dataclasses.replace(scan, shared=any(counts[folder] > 1 for folder in several))
    for scan, several in zip(scans, folders, strict=True)
  ]
