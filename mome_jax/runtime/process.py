"""What a command does to its process before it computes."""

import ctypes
import os
import sys

from mome_jax.runtime import compilation

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_FEW = 32  # CPU cores
# By which the environment tells glibc, as variables and as parts of GLIBC_TUNABLES.
_TOLD = {
  *('MALLOC_ARENA_MAX', 'MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'),
  *('glibc.malloc.arena_max', 'glibc.malloc.mmap_max'),
  *('glibc.malloc.mmap_threshold', 'glibc.malloc.trim_threshold'),
}


def prepare() -> None:
  """Keeps compiled programs, see `compilation.use_cache`, and freed memory.

  For commands, whose process is theirs alone; where they are of one run, after
  `multihost.initialize`. Before devices are asked for: their threads take heaps as it says.
  """
  compilation.use_cache()
  tunables = os.environ.get('GLIBC_TUNABLES', '').split(':')
  told = _TOLD & {*os.environ, *(one.partition('=')[0] for one in tunables)}
  if sys.platform == 'linux' and not told:
    _keep_freed_memory()


def _keep_freed_memory() -> None:
  """Lets glibc keep large arrays that are freed for the next ones.

  It would give each back to the system, which clears the pages of the next one: a third of the
  time that a network took on two CPU cores.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # other C libraries have none
  if mallopt is not None:
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    # A heap of each thread has no room for large arrays, but many threads would wait for one heap.
    if len(os.sched_getaffinity(0)) <= _FEW:
      mallopt(_ARENA_MAX, 1)


def release() -> None:
  """Gives freed memory back to the system: for servers, which wait for hours between two scans."""
  if sys.platform == 'linux':
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # other C libraries have none
    if trim is not None:
      trim(0)
