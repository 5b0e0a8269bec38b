"""The folder in which a source is prepared, and how it takes the place of the earlier one."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from input_pipeline import folder_lock
from input_pipeline.bricks import records
from input_pipeline.errors import UserError

CASES = 'cases'  # folder of finished cases, which a killed run leaves to the next one


class StagingError(UserError):
  """Another process is preparing the same source."""


@contextlib.contextmanager
def stage_folder(data_dir: epath.Path, source: str) -> Iterator[epath.Path]:
  """A folder beside the final one, with nothing in it but the CASES of an earlier run.

  Only one process has it (a bucket has no locks, there it is up to the user). It is removed
  afterwards; if something fails, its cases stay for the next run.

  Args:
    data_dir: of all prepared sources; created where missing.
    source: name of the prepared source.

  Raises:
    StagingError: if another process has it.
  """
  folder = _folder(data_dir, source)
  folder.mkdir(parents=True, exist_ok=True)
  refusal = StagingError(f'{folder}: another process is preparing {source}; wait for it')
  with folder_lock.sole(folder, refusal):
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


def _folder(data_dir: epath.Path, source: str) -> epath.Path:
  return data_dir / f'.{source}.incomplete'


def bytes_of_cases(data_dir: epath.Path, source: str) -> int:
  """Bytes of the finished cases that a killed run left."""
  folder = _folder(data_dir, source) / CASES
  return sum(path.stat().length for path in files_in(folder)) if folder.is_dir() else 0


def publish(folder: epath.Path, final: epath.Path, replaced: epath.Path) -> None:
  """Puts a complete folder in its place; in a bucket, its SETTINGS last, which make it count."""
  if '://' not in os.fspath(final):
    if final.exists():
      os.replace(final, replaced)
    os.replace(folder, final)
    return
  if final.exists():
    (final / records.SETTINGS).unlink(missing_ok=True)
    final.rmtree()
  files = sorted(files_in(folder), key=lambda path: path.name == records.SETTINGS)
  for path in files:
    target = final / os.path.relpath(os.fspath(path), os.fspath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    path.copy(target)


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
