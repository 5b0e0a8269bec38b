"""Folders that one process works in at a time.

The lock is the folder's own, so that nothing is left in it, and ends with its process, however that
ends. A bucket and some network disks have no locks: there it is up to the user.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from input_pipeline.files.buckets import is_in_bucket


def lock(handle: int | IO, *, wait: bool) -> None:
  """Locks an open file or folder until all who have it open, forked workers too, close it.

  Raises:
    BlockingIOError: if another process has it, and is not waited for.
    OSError: if the file system has no locks.
  """
  import fcntl  # Windows lacks it, and is told what to do once a command runs

  fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def sole(folder: os.PathLike, refusal: Exception) -> Iterator[None]:
  """Has a folder alone.

  Args:
    folder: existing.
    refusal: raised where another process has it, or just had and removed it.
  """
  if is_in_bucket(folder):
    yield
    return
  with _opened(folder) as handle:
    try:
      lock(handle, wait=False)
    except BlockingIOError:
      raise refusal from None
    except OSError:  # this file system has no locks
      pass
    if not _is_at(handle, folder):  # a lock of what is gone keeps nobody out
      raise refusal
    yield


@contextlib.contextmanager
def in_turn(folder: os.PathLike) -> Iterator[None]:
  """Has an existing folder alone, after whoever has it."""
  with _opened(folder) as handle:
    with contextlib.suppress(OSError):
      lock(handle, wait=True)
    yield


@contextlib.contextmanager
def _opened(folder: os.PathLike) -> Iterator[int]:
  import fcntl

  handle = os.open(folder, os.O_RDONLY)
  try:
    yield handle
  finally:
    with contextlib.suppress(OSError):  # closing is not enough while a forked worker has it open
      fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_at(handle: int, folder: os.PathLike) -> bool:
  try:
    return os.path.samestat(os.fstat(handle), os.stat(folder))
  except FileNotFoundError:
    return False
