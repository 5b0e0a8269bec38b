"""What an input folder holds: every file in it is used, left out with a reason, or failed.

`predict`, `prepare` and `score` ask here which files of a folder are input, so that none vanishes:

  holding = inventory.look(folder, file_kinds.VOLUMES, deep=False)
  holding.used      files to read
  holding.failed    what looks like input and cannot be read; `problem` is a line for the user
  holding.left_out  the rest, each with its `reason`; `holding.notes()` tells of it in a few phrases

A file's kind follows from the ending of its name, in any case of letters, and from its first bytes
where the name does not say, or says an image or a picture and the bytes DICOM. Links are
followed, and every folder is read once.
"""

import collections
import dataclasses
import errno
import os
import pathlib
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence

from input_pipeline import errors
from input_pipeline.files import file_kinds, image_headers
from input_pipeline.files.file_kinds import ITK_ENDINGS, NIFTI_ENDINGS, SEGMENTS_ENDING

_CHANNEL = re.compile(r'(.+)_(\d{4})')
_HALF = 'file is missing; copy both'


class FolderError(errors.UserError):
  """A folder or archive that cannot be listed; the message names it and the fix."""


@dataclasses.dataclass(frozen=True)
class File:
  """A file that lies in a folder or zip archive.

  Attributes:
    path: as found, links are not resolved; in an archive, its own path and the name in it.
    name: below the folder or in the archive, with '/' between its parts.
    kind: 'nifti'; 'itk', NRRD or MetaImage; 'dicom'; 'zip'; 'image', a scan in another format;
      'unknown', what cannot be opened and has no ending; or 'other'.
    reason: why it is left out, as a noun; '' if it is not.
    problem: why it cannot be read, a line with file and fix; '' if nothing is known to be wrong.
    is_folder: a folder that is left out as a whole, or cannot be listed.
  """

  path: pathlib.Path
  name: str
  kind: str
  reason: str = ''
  problem: str = ''
  is_folder: bool = False

  @property
  def unit(self) -> str:
    """'file' or 'folder'."""
    return 'folder' if self.is_folder else 'file'

  @property
  def parent(self) -> str:
    """Name of its folder, '' for the one that was looked into."""
    return self.name.rpartition('/')[0]


@dataclasses.dataclass(frozen=True)
class Inventory:
  """Every file of a folder, by name.

  Attributes:
    used: files to read.
    failed: with their `problem`.
    left_out: with their `reason`.
    folders: that were not looked into, as only the files directly in the folder were asked for.
  """

  used: tuple[File, ...]
  failed: tuple[File, ...]
  left_out: tuple[File, ...]
  folders: tuple[pathlib.Path, ...] = ()

  def notes(self) -> list[str]:
    """What was left out, one phrase a reason: 'hidden (1 folder, 2 files)'."""
    return phrases(self.left_out)


def look(
  folder: str | os.PathLike,
  kinds: Collection[str],
  *,
  deep: bool = True,
  skip: Callable[[pathlib.Path], str] = lambda path: '',
) -> Inventory:
  """Accounts for every file of a folder, or of a zip archive.

  Args:
    folder: to look into, or a `.zip` file.
    kinds: of `File.kind` that are input here; what else there is is left out.
    deep: look at any depth, else only at the files directly in it.
    skip: path of a file or folder -> why it is left out, or ''; what is in such a folder is not
      looked at.

  Returns:
    Its files. Scans in formats that nothing reads are failed where NIfTI is input.

  Raises:
    FolderError: if it cannot be listed.
    zipfile.BadZipFile: if it is a file but no zip archive.
  """
  folder = pathlib.Path(folder)
  files, folders = _walk(folder, deep, skip) if os.path.isdir(folder) else (_packed(folder), [])
  files = _slices_among(sorted(files, key=lambda file: file.name))
  failing = {*kinds, 'unknown', *(('image',) if 'nifti' in kinds else ())}
  used, failed, left_out = [], [], []
  for file in files:
    if file.reason:
      left_out.append(file)
    elif file.kind == 'image' and 'nifti' in kinds and not file.problem:
      problem = f'{file.path}: in a format that is not read; convert it to .nii.gz'
      failed.append(dataclasses.replace(file, problem=problem))
    elif file.problem and file.kind in failing:
      failed.append(file)
    elif file.kind in kinds:
      used.append(file)
    else:
      left_out.append(dataclasses.replace(file, reason=_NOUNS.get(file.kind, 'other file')))
  return Inventory(tuple(used), tuple(failed), tuple(left_out), tuple(sorted(folders)))


_NOUNS = {
  'nifti': 'NIfTI',
  'itk': 'NRRD or MetaImage',
  'dicom': 'DICOM',
  'zip': 'zip archive',
  'image': 'other image format',
}


def look_at(path: str | os.PathLike) -> File:
  """One file that was named: its kind, and its problem if there is one."""
  path = pathlib.Path(path)
  return _file(path, path.name)


def is_volume_name(name: str) -> bool:
  """Whether a file's name ends like that of a NIfTI, NRRD or MetaImage file."""
  return name.lower().endswith((*NIFTI_ENDINGS, *ITK_ENDINGS))


def phrases(left_out: Iterable[File | str]) -> list[str]:
  """'MR (2 files)' for each reason, of files or a text for each, by name."""
  counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  for file in left_out:
    reason, unit = (file, 'file') if isinstance(file, str) else (file.reason, file.unit)
    counts[reason][unit] += 1
  told = []
  for reason, units in sorted(counts.items()):
    numbers = [f'{n} {unit}{"s" * (n > 1)}' for unit, n in sorted(units.items(), reverse=True)]
    told.append(f'{reason} ({", ".join(numbers)})')
  return told


def stem(name: str) -> str:
  """Name of a volume's file without its ending, whatever the case of its letters."""
  for ending in (*NIFTI_ENDINGS, SEGMENTS_ENDING, *ITK_ENDINGS):
    if name.lower().endswith(ending):
      return name[: -len(ending)]
  return name


def case_names(stems: Iterable[str]) -> dict[str, str]:
  """Names of scans without nnU-Net's channel, where they have one.

  `NAME_0000` is the only channel of NAME if nothing beside it is called `NAME`, or `NAME_` with
  another number of four digits. Any other number, as in `case_0201`, belongs to the name.

  Args:
    stems: of all files of one folder.

  Returns:
    Stem -> name of its case.
  """
  stems = list(stems)
  numbers = _channels(stems)
  names = {}
  for text in stems:
    case = text.removesuffix('_0000')
    names[text] = case if numbers.get(case) == {0} and case not in stems else text
  return names


def further_channels(stems: Iterable[str], maps: Iterable[str] = ()) -> list[str]:
  """Those of one folder's stems that are second channels, as `NAME_0001` beside `NAME_0000`.

  Where one of the numbers exceeds 9, or a label map has one, they count patients and not channels.

  Args:
    stems: of the scans of one folder.
    maps: stems of their label maps, where there are any.
  """
  stems = list(stems)
  channels = {case: numbers for case, numbers in _channels(stems).items() if 0 in numbers}
  patients = _channels(maps).keys()
  single = {case for case, held in channels.items() if max(held) < 10 and case not in patients}
  matches = filter(None, map(_CHANNEL.fullmatch, stems))
  return [match[0] for match in matches if match[1] in single and int(match[2])]


def _channels(stems: Iterable[str]) -> dict[str, set[int]]:
  """NAME -> the numbers of its `NAME_dddd`."""
  numbers = collections.defaultdict(set)
  for match in filter(None, map(_CHANNEL.fullmatch, stems)):
    numbers[match[1]].add(int(match[2]))
  return dict(numbers)


def is_hidden(name: str) -> bool:
  """Whether a path below a folder is hidden, as what macOS adds to folders and archives is."""
  return any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))


def _walk(
  folder: pathlib.Path, deep: bool, skip: Callable[[pathlib.Path], str]
) -> tuple[list[File], list[pathlib.Path]]:
  """Every file of a folder, those it really holds before those it links to."""
  files, shallow = [], []
  seen = {os.path.realpath(folder)}
  around = set(map(str, pathlib.Path(os.path.realpath(folder)).parents))
  folders: list[pathlib.Path] = [folder]
  links: list[pathlib.Path] = []
  while folders or links:
    current = (folders or links).pop(0)
    name = current.relative_to(folder).as_posix()
    if current != folder:
      real = os.path.realpath(current)
      if real in seen or real in around:
        reason = 'link to a folder that is looked at'
        files.append(File(current, name, 'other', reason, is_folder=True))
        continue
      seen.add(real)
    try:
      entries = sorted(os.scandir(current), key=lambda entry: entry.name)
    except OSError as error:
      if current == folder:
        raise FolderError(unreadable(current, error)) from error
      files.append(
        File(current, name, 'unknown', problem=unreadable(current, error), is_folder=True)
      )
      continue
    for entry in entries:
      path = current / entry.name
      name = path.relative_to(folder).as_posix()
      reason = 'hidden' if is_hidden(entry.name) else skip(path)
      if reason:
        files.append(File(path, name, 'other', reason, is_folder=_is_folder(entry)))
      elif not _is_folder(entry):
        files.append(_file(path, name))
      elif deep:
        (links if entry.is_symlink() else folders).append(path)
      else:
        shallow.append(path)
  return files, shallow


def _packed(path: pathlib.Path) -> list[File]:
  """Every file of a zip archive."""
  files = []
  try:
    packed = zipfile.ZipFile(path)
  except OSError as error:
    raise FolderError(unreadable(path, error)) from error
  with packed as archive:
    for entry in archive.infolist():
      name = entry.filename
      if is_hidden(name):
        files.append(File(path / name, name, 'other', 'hidden'))
      elif not entry.is_dir():
        files.append(_entry(archive, entry, path / name))
  return files


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: pathlib.Path) -> File:
  name = entry.filename
  if not entry.file_size:
    return _failed(path, name, f'{path}: cannot be read, it is empty; pack it again', 'empty')
  ending = file_kinds.by_ending(path.name)
  if ending not in (None, 'itk', 'image', 'picture'):
    return File(path, name, *file_kinds.classify(name, b''))
  try:
    with archive.open(entry) as stream:
      head = stream.read(file_kinds.HEAD)
  except (OSError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
    reason = 'picture' if ending == 'picture' else ''
    return _failed(path, name, f'{path}: cannot be unpacked ({error}); pack it again', reason)
  return File(path, name, *file_kinds.classify(name, head))


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself
    return False


def _file(path: pathlib.Path, name: str) -> File:
  """A file by its name and first bytes, and what is wrong with it."""
  try:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
      return _failed(path, name, f'{path}: is no regular file; remove it', 'no regular file')
    if not status.st_size:
      return _failed(path, name, f'{path}: cannot be read, it is empty; copy it again', 'empty')
    with path.open('rb') as stream:
      head = stream.read(file_kinds.HEAD)
  except OSError as error:
    ending = path.suffix and not path.suffix[1:].isdigit()
    reason = 'cannot be opened' if ending else ''
    return _failed(path, name, unreadable(path, error), reason)
  kind, reason = file_kinds.classify(name, head)
  if kind != 'dicom' and name.lower().endswith(('.hdr', '.img')):
    kind, reason, problem = _pair(path)
    return File(path, name, kind, reason, problem)
  if kind == 'itk' and name.lower().endswith(('.nhdr', '.mhd')):
    return File(path, name, kind, problem=_apart(path))
  return File(path, name, kind, reason)


def _failed(path: pathlib.Path, name: str, problem: str, reason: str) -> File:
  """A file with a problem where its name is that of input, else one that is left out."""
  kind = file_kinds.by_ending(path.name)
  if kind in file_kinds.INPUT:
    return File(path, name, kind, problem=problem)
  if reason:
    return File(path, name, 'other', reason)
  return File(path, name, 'unknown', problem=problem)


def unreadable(path: pathlib.Path, error: OSError) -> str:
  """Why a path that is there cannot be opened: a line with the path and the fix."""
  if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
    return f'{path}: a link to {os.readlink(path)}, which is not there; get that file'
  if error.errno == errno.EISDIR:
    return f'{path}: is a folder, where a file is expected; remove it'
  return f'{path}: cannot be opened ({error.strerror}); change its permissions or copy it again'


def halves(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of a volume: itself, and those that hold its voxels apart, if they are there."""
  if path.name.lower().endswith(('.nhdr', '.mhd')):
    try:
      return [path, *(other for other in image_headers.data_files(path) if other.exists())]
    except (image_headers.HeaderError, OSError):  # told where it is read
      return [path]
  others = {'.hdr': ('.img', '.IMG'), '.img': ('.hdr', '.HDR')}.get(path.suffix.lower(), ())
  beside = (path.with_suffix(ending) for ending in others)
  return [path, *(other for other in beside if other.exists())][:2]


def _pair(path: pathlib.Path) -> tuple[str, str, str]:
  """Kind, reason and problem of one half of a scan in two files."""
  other = '.img' if path.suffix.lower() == '.hdr' else '.hdr'
  if len(halves(path)) == 1:
    return 'image', '', f'{path}: its {other} {_HALF}'
  return ('nifti', '', '') if other == '.img' else ('other', 'voxels of a .hdr file', '')


def _apart(path: pathlib.Path) -> str:
  """What is wrong with a header whose voxels lie in other files, '' if nothing is."""
  try:
    missing = [other for other in image_headers.data_files(path) if not other.exists()]
  except image_headers.HeaderError as error:
    return f'{path}: cannot be read: {error}'
  return f'{path}: its {missing[0].name} {_HALF}' if missing else ''


def _slices_among(files: Sequence[File]) -> list[File]:
  """The files, with those as DICOM that are named like the slices beside them but are damaged."""
  slices = {
    (file.parent, _shape(file.name)) for file in files if file.kind == 'dicom' and not file.problem
  }
  made = []
  for file in files:
    damaged = file.reason in ('empty', 'unknown format', 'picture', 'cannot be opened')
    damaged = damaged or file.kind in ('unknown', 'itk', 'image')
    if damaged and (file.parent, _shape(file.name)) in slices:
      problem = file.problem
      if not problem or problem.endswith(_HALF):
        problem = f'{file.path}: cannot be read as DICOM; copy it again'
      file = dataclasses.replace(file, kind='dicom', reason='', problem=problem)
    made.append(file)
  return made


def _shape(name: str) -> str:
  """A file's name with its numbers, decimal or hexadecimal, left open: 'IM#' of 'IM0012'."""
  return re.sub(r'[0-9A-Fa-f]*\d[0-9A-Fa-f]*', '#', name.rpartition('/')[2])
