"""The folder in which a source is prepared, and how it takes the place of the earlier one."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from input_pipeline.bricks import records
from input_pipeline.errors import UserError
from input_pipeline.files import folder_lock
from input_pipeline.files.buckets import is_in_bucket

CASES = 'cases'  # folder of finished cases, which a killed run leaves to the next one
_REPLACED = 'replaced'  # where the earlier source is until the new one is in its place


class StagingError(UserError):
  """Another process is preparing the same source."""


@contextlib.contextmanager
def stage_folder(data_dir: epath.Path, source: str) -> Iterator[epath.Path]:
  """A folder beside the final one, with nothing in it but the CASES of an earlier run.

  A `publish` that was killed is ended first, see `recover`. Only one process has the folder (a
  bucket has no locks, there it is up to the user). It is removed afterwards; if something fails,
  its cases stay for the next run.

  Args:
    data_dir: of all prepared sources; created where missing.
    source: name of the prepared source.

  Raises:
    StagingError: if another process has it.
  """
  folder = _folder(data_dir, source)
  folder.mkdir(parents=True, exist_ok=True)
  with folder_lock.sole(folder, _refusal(folder, source)):
    _recover(folder, data_dir / source)
    _discard(folder / source)
    for leftover in entries(folder):  # of a run that was killed
      if leftover.name != CASES:
        leftover.rmtree()
    try:
      yield folder
    except BaseException:
      if not entries(folder):
        remove(folder)
      raise
    remove(folder)


def recover(data_dir: epath.Path, source: str) -> None:
  """Ends a `publish` that was killed, so that no draw or fold of the source is lost.

  On a disk the earlier folder is put back: it is the one that is known to be on the disk wholly. In
  a bucket, where it is gone by then, the new one is copied again.

  Args:
    data_dir: of all prepared sources.
    source: name of the prepared source.

  Raises:
    StagingError: if another process has it.
  """
  folder = _folder(data_dir, source)
  if _is_half_published(folder, data_dir / source):
    with folder_lock.sole(folder, _refusal(folder, source)):
      _recover(folder, data_dir / source)
      if is_in_bucket(folder):  # the run that was killed is done
        remove(folder)


def _recover(folder: epath.Path, final: epath.Path) -> None:
  if not _is_half_published(folder, final):
    return
  if is_in_bucket(final):
    publish(folder, final)
  else:
    os.replace(folder / _REPLACED, final)


def _is_half_published(folder: epath.Path, final: epath.Path) -> bool:
  """Whether a killed `publish` took the earlier folder away and did not end.

  The new one is beside it until then: nothing comes back where a user removed the final folder.
  """
  new = folder / final.name / records.SETTINGS
  if is_in_bucket(final):
    return new.exists() and not (final / records.SETTINGS).exists()
  return new.exists() and (folder / _REPLACED).exists() and not final.exists()


def _refusal(folder: epath.Path, source: str) -> StagingError:
  return StagingError(f'{folder}: another process is preparing {source}; wait for it')


def _folder(data_dir: epath.Path, source: str) -> epath.Path:
  return data_dir / f'.{source}.incomplete'


def bytes_of_cases(data_dir: epath.Path, source: str) -> int:
  """Bytes of the finished cases that a killed run left."""
  folder = _folder(data_dir, source) / CASES
  return sum(path.stat().length for path in files_in(folder)) if folder.is_dir() else 0


def publish(folder: epath.Path, final: epath.Path) -> None:
  """Puts a complete source in its place; in a bucket, its SETTINGS last, which make it count.

  Args:
    folder: of `stage_folder`; the source is in it, under its name.
    final: folder of the prepared source.
  """
  new = folder / final.name
  if not is_in_bucket(final):
    if final.exists():
      os.replace(final, folder / _REPLACED)
    os.replace(new, final)
    return
  if final.exists():
    _discard(final)
  files = sorted(files_in(new), key=lambda path: path.name == records.SETTINGS)
  for path in files:
    target = final / os.path.relpath(os.fspath(path), os.fspath(new))
    target.parent.mkdir(parents=True, exist_ok=True)
    path.copy(target)
  _discard(new)


def _discard(folder: epath.Path) -> None:
  """Removes a source, its SETTINGS first, so that what is left never counts as complete."""
  (folder / records.SETTINGS).unlink(missing_ok=True)
  remove(folder)


def entries(folder: epath.Path) -> list[epath.Path]:
  """What is in a folder; a bucket has no empty ones, so that they are not there."""
  try:
    return list(folder.iterdir())
  except FileNotFoundError:
    return []


def remove(folder: epath.Path) -> None:
  """Removes a folder with all that is in it, if it is there."""
  if folder.exists():
    folder.rmtree()


def files_in(folder: epath.Path) -> Iterator[epath.Path]:
  """All files at any depth."""
  for path in entries(folder):
    yield from files_in(path) if path.is_dir() else [path]
