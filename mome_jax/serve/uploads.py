"""Scans that come over the wire: to disk, under names that the server gives, up to a limit."""

import contextlib
import math
import pathlib
import re
import tarfile
import zipfile
from collections.abc import AsyncIterator

from input_pipeline import file_kinds, inventory
from input_pipeline.ct import itk_image, nifti
from mome_jax.errors import UserError, one_line, writing

_ENDING = re.compile(r'(\.nii)?\.[a-z0-9]{1,6}$')
# Scans in two files: what is sent gets names of the server, and one would not find the other.
_HALVES = ('.hdr', '.img', '.mhd', '.nhdr', '.raw', '.zraw')
_BYTES_A_VOXEL = 4  # of a scan in memory
_LONGEST = 60  # characters of a title
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
  text = re.sub(r'[^\w-]+', '_', name).strip('_-') or 'scan'
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


def unpack(path: pathlib.Path, name: str, limit: int) -> tuple[pathlib.Path, list[str]]:
  """What `find_scans` is to look at: the file, or of a tar archive a folder of its files.

  Of a tar archive hidden files, empty ones and DICOMDIR are left out, which the notes tell.

  Args:
    path: from `save`.
    name: as its sender calls it, for messages.
    limit: bytes, also of what an archive or a compressed scan holds.

  Returns:
    File or folder, and notes.

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
  return path, []


def _unpack_tar(path: pathlib.Path, name: str, limit: int) -> tuple[pathlib.Path, list[str]]:
  folder = path.with_name('series')
  folder.mkdir()
  left_out = []
  size = 0
  try:
    with writing(name, UploadError), tarfile.open(path, 'r:') as archive:
      for number, item in enumerate(archive):
        content = archive.extractfile(item) if item.isreg() else None
        if content is None:
          continue
        if reason := _no_scan(item):
          left_out.append(reason)
          continue
        size += item.size
        if size > limit:
          raise TooLargeError(f'{name}: {_too_large(limit)}')
        ending = _ENDING.search(item.name.lower())
        target = folder / f'{number:06d}{ending[0] if ending else ""}'
        with target.open('wb') as file:
          while chunk := content.read(1 << 20):
            file.write(chunk)
        _check_whole(target, name)
        with contextlib.suppress(*_BROKEN_ZIP):  # told by the reader, and no fault of the others
          _check_size(target, name, limit)
  except tarfile.TarError as error:
    raise UploadError(f'{name}: {_broken(error)}') from error
  path.unlink()
  told = ', '.join(inventory.phrases(left_out))
  return folder, [f'{name}: left out {told}'] if left_out else []


def _no_scan(item: tarfile.TarInfo) -> str:
  """Why a file is left out by its own name, which it does not keep; '' if it may be a scan."""
  base = item.name.rpartition('/')[2]
  if inventory.is_hidden(base):
    return 'hidden'
  if base.upper() == 'DICOMDIR':
    return 'DICOM directory'
  return '' if item.size else 'empty'


def _check_whole(path: pathlib.Path, name: str) -> None:
  """UploadError for half of a scan; slices, which are often called .img, are none."""
  if path.name.endswith(_HALVES) and inventory.look_at(path).kind != 'dicom':
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
