"""Results that appear as a whole or not at all, whatever ends the program in between."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence

from input_pipeline.files import folder_lock
from mome_jax.errors import UserError

_PREFIX = '.incomplete-'
_NEW, _OLD, _LOCK, _PLAN = 'new', 'old', 'lock', 'plan.json'
_DAY = 24 * 3600  # seconds; what has no lock yet and is younger may belong to a live process


class MeanwhileError(UserError):
  """Another process wrote what was about to be written; the message names it."""


@contextlib.contextmanager
def staged(
  output: pathlib.Path, replaced: Sequence[str] = (), *, unless: str = ''
) -> Iterator[pathlib.Path]:
  """A folder whose content moves into `output` when the block is left without an error.

  What has the same name, file or folder, is replaced as a whole; `.json` files come last, so that
  one stands for a complete result. After an error, in the block or while moving, `output` holds
  what it held before. The folder's parent is hidden and removed too: a place for temporary files.

  Args:
    output: existing folder.
    replaced: names in `output` that go even if the block made nothing of that name.
    unless: a name in `output` that must not be there when the block is left.

  Raises:
    MeanwhileError: if it is.
  """
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(scratch(output))
    new = folder / _NEW
    new.mkdir()
    yield new
    stack.enter_context(folder_lock.in_turn(output))
    made = sorted(new.iterdir(), key=lambda path: (path.suffix == '.json', path.name))
    names = [path.name for path in made]
    going = [name for name in dict.fromkeys([*replaced, *names]) if os.path.lexists(output / name)]
    (folder / _PLAN).write_text(json.dumps(names), encoding='utf-8')
    (folder / _OLD).mkdir()
    if unless and os.path.lexists(output / unless):
      raise MeanwhileError(
        f'{output / unless}: another run made it meanwhile, and it stays; give each run an '
        '--output of its own, or its scans names of their own'
      )
    try:
      for name in sorted(going, key=lambda name: not name.endswith('.json')):  # a legend goes first
        os.replace(output / name, folder / _OLD / name)
      for path in made:
        os.replace(path, output / path.name)
    except BaseException:
      _roll_back(output, folder)
      raise


@contextlib.contextmanager
def scratch(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """A hidden folder in `output` for the length of a block; a later `sweep` removes one left over.

  Args:
    output: existing folder.
  """
  folder = pathlib.Path(tempfile.mkdtemp(dir=output, prefix=_PREFIX))
  try:
    with (folder / f'un{_LOCK}').open('w') as lock:
      with contextlib.suppress(OSError):  # a file system without locks
        folder_lock.lock(lock, wait=True)
      os.replace(lock.name, folder / _LOCK)  # no lock is ever seen open by `sweep` of another run
      yield folder
  finally:
    if not _is_torn(folder):
      shutil.rmtree(folder, ignore_errors=True)


def sweep(output: pathlib.Path) -> None:
  """Removes what processes that are gone have left half-written in `output`.

  Results that such a process was about to replace are put back. What a live process holds, on this
  machine or on another one that shares the file system's locks, stays.

  Args:
    output: existing folder.
  """
  for folder in output.glob(f'{_PREFIX}*'):
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
      if (folder / _LOCK).exists():
        lock = stack.enter_context((folder / _LOCK).open('r+'))
        folder_lock.lock(lock, wait=False)  # BlockingIOError: somebody has it
      elif time.time() - folder.stat().st_mtime < _DAY:
        continue
      if _is_torn(folder):
        _roll_back(output, folder)
      shutil.rmtree(folder)


def _is_torn(folder: pathlib.Path) -> bool:
  """Whether some moves of `staged` were made and others not."""
  waiting, old = (set(os.listdir(path)) if path.is_dir() else set()
                  for path in (folder / _NEW, folder / _OLD))  # fmt: skip
  if not (folder / _OLD).is_dir() or not waiting:
    return False
  return bool(old) or waiting != set(json.loads((folder / _PLAN).read_text(encoding='utf-8')))


def _roll_back(output: pathlib.Path, folder: pathlib.Path) -> None:
  """Undoes the moves of `staged` that were made."""
  old = list((folder / _OLD).iterdir())
  waiting = {path.name for path in (folder / _NEW).iterdir()}
  for name in json.loads((folder / _PLAN).read_text(encoding='utf-8')):
    if name not in waiting:
      os.replace(output / name, folder / _NEW / name)
  for path in sorted(old, key=lambda path: path.suffix == '.json'):
    os.replace(path, output / path.name)
