"""Scans that come over the wire: to disk, up to a limit, and nowhere but in a folder of theirs."""

import contextlib
import math
import os
import pathlib
import re
import shutil
import tarfile
import zipfile
from collections.abc import AsyncIterator, Sequence

from input_pipeline.ct import itk_image, nifti
from input_pipeline.files import file_kinds, inventory
from mome_jax.errors import UserError, one_line, writing

_ENDING = re.compile(r'(\.nii)?\.[a-z0-9]{1,6}$')
# Of scans in two files: one sent alone would not find the other, and a header may name any file.
_HALVES = ('.hdr', '.img', '.mhd', '.nhdr', '.raw', '.zraw')
_BYTES_A_VOXEL = 4  # of a scan in memory
_LONGEST = 60  # characters of a title, or of a file whose name is too long
_NAME = 200  # bytes of a file's name; disks take 255 with what is before it
_TAR = 257, b'ustar'  # place and bytes of its mark
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError)  # of a zip version that is none


class UploadError(UserError):
  """What was sent is no scan that can be taken; the message says why."""


class TooLargeError(UploadError):
  """What was sent is more than the limit."""


def title_of(name: str) -> str:
  """What a scan is called after a file's name, without its folder and ending; as of `plain`."""
  base = re.split(r'[/\\]', name)[-1]
  return plain(re.sub(r'(\.nii)?\.[A-Za-z][A-Za-z0-9]{0,5}$', '', base))


def plain(name: str) -> str:
  """A name in letters, digits, '_' and '-', at most 60: of a longer one both ends."""
  return _short(re.sub(r'[^\w-]+', '_', name).strip('_-') or 'scan')


def _short(text: str) -> str:
  half = _LONGEST // 2
  return text if len(text) <= _LONGEST else f'{text[: half - 1]}_{text[-half:]}'


async def save(
  chunks: AsyncIterator[bytes], folder: pathlib.Path, name: str, limit: int
) -> pathlib.Path:
  """Writes a file that comes in chunks.

  Args:
    chunks: of its content.
    folder: empty; to write into.
    name: as its sender calls it; its ending alone is kept.
    limit: bytes.

  Raises:
    TooLargeError: if there is more.
    UploadError: if there is nothing.
  """
  ending = _ENDING.search(name.lower())
  path = folder / f'scan{ending[0] if ending else ""}'
  size = 0
  with writing(name, UploadError), path.open('wb') as file:
    async for chunk in chunks:
      size += len(chunk)
      if size > limit:
        raise TooLargeError(f'{name}: {_too_large(limit)}')
      file.write(chunk)
  if not size:
    raise UploadError(f'{name}: is empty; send a NIfTI file, a DICOM .zip, or a .tar of a series')
  return path


def unpack(path: pathlib.Path, name: str, limit: int) -> pathlib.Path:
  """What `find_scans` is to look at: the file, or of a tar archive a folder of its files.

  These are called and lie as at their sender, as folders tell phases apart and messages name files,
  but without the folders that all of them are in.

  Args:
    path: from `save`.
    name: as its sender calls it, for messages.
    limit: bytes, also of what an archive or a compressed scan holds.

  Raises:
    TooLargeError: if it holds more.
    UploadError: if it is broken, or half of a scan in two files.
  """
  with path.open('rb') as file:
    file.seek(_TAR[0])
    if file.read(len(_TAR[1])) == _TAR[1]:
      return _unpack_tar(path, name, limit)
  _check_whole(path, name)
  try:
    _check_size(path, name, limit)
  except _BROKEN_ZIP as error:
    raise UploadError(f'{name}: {_broken(error)}') from error
  return path


def _unpack_tar(path: pathlib.Path, name: str, limit: int) -> pathlib.Path:
  folder = path.with_name('series')
  size = 0
  try:
    with writing(name, UploadError), tarfile.open(path, 'r:', encoding='utf-8') as archive:
      folder.mkdir()
      items = [item for item in archive if item.isreg()]
      places = [_place(item.name) for item in items]
      shared = len(os.path.commonprefix([place[:-1] for place in places]))
      for number, (item, place) in enumerate(zip(items, places, strict=True)):
        size += item.size
        if size > limit:
          raise TooLargeError(f'{name}: {_too_large(limit)}')
        target = _extract(archive, item, folder, place[shared:], number)
        if not item.size or inventory.is_hidden('/'.join(place)):  # left out where it is looked at
          continue
        within = f'{name}: {target.relative_to(folder)}'
        _check_whole(target, within)
        with contextlib.suppress(*_BROKEN_ZIP):  # told by the reader, and no fault of the others
          _check_size(target, within, limit)
  except tarfile.TarError as error:
    raise UploadError(f'{name}: {_broken(error)}') from error
  path.unlink()
  return folder


def _place(name: str) -> tuple[str, ...]:
  """The folders and the name of a file in an archive: no way out, and nothing a disk refuses."""
  parts = [part for part in re.split(r'[/\\]', name) if part not in ('', '.', '..')] or ['file']
  shown = (''.join(c if c.isprintable() else '_' for c in part) for part in parts)
  return tuple(part if len(part.encode()) <= _NAME else _short(part) for part in shown)


def _extract(
  archive: tarfile.TarFile,
  item: tarfile.TarInfo,
  folder: pathlib.Path,
  place: Sequence[str],
  number: int,
) -> pathlib.Path:
  """Where a file of an archive was written: at its place, with its number if that is taken."""
  target = folder.joinpath(*place)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):  # a file is called as the folder
    target = folder / target.name
  if os.path.lexists(target):  # also one in other letters, where a disk does not tell them apart
    target = target.with_name(f'{number}_{target.name}')
  content = archive.extractfile(item)
  assert content is not None  # of a regular file
  with target.open('xb') as file:
    shutil.copyfileobj(content, file, 1 << 20)
  return target


def _check_whole(path: pathlib.Path, name: str) -> None:
  """UploadError for half of a scan; slices, which are often called .img, are none."""
  if path.name.lower().endswith(_HALVES) and inventory.look_at(path).kind != 'dicom':
    raise UploadError(
      f'{name}: a scan in two files, as .hdr and .img are; convert it to .nii.gz, .nrrd or .mha'
    )


def _check_size(path: pathlib.Path, name: str, limit: int) -> None:
  """TooLargeError for what takes more where it is unpacked; other files are never read whole."""
  kind = inventory.look_at(path).kind
  if kind in file_kinds.VOLUMES and _voxels(path) * _BYTES_A_VOXEL > limit:
    raise TooLargeError(f'{name}: its scan {_too_large(limit)}')
  if kind == 'zip':
    with zipfile.ZipFile(path) as archive:
      size = sum(item.file_size for item in archive.infolist())
    if size > limit:
      raise TooLargeError(f'{name}: unpacked, it {_too_large(limit)}')


def _voxels(path: pathlib.Path) -> int:
  """By the header of a file; 0 where that cannot be read, which the reader explains."""
  try:
    if itk_image.is_itk(path):
      return math.prod(itk_image.grid(path)[0])
    return math.prod(nifti.stored_shape(path))
  except Exception:  # of a broken file, of whatever kind
    return 0


def _broken(error: Exception) -> str:
  return f'a broken archive ({one_line(error)}); send it again'


def _too_large(limit: int) -> str:
  return f'is larger than {limit / 1e9:g} GB; start the server with a larger --max-upload'
