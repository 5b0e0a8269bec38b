"""What Slurm or a container lets this process use: Linux's control groups, of both versions."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

_ROOT = pathlib.Path('/')


def folders(kind: str, root: pathlib.Path = _ROOT) -> Iterator[tuple[pathlib.Path, bool]]:
  """The groups that may limit this process, from its own one up, and whether they are of version 2.

  Args:
    kind: what they limit: 'cpu' or 'memory'.
    root: of the file system.
  """
  with contextlib.suppress(OSError):
    for line in (root / 'proc/self/cgroup').read_text(encoding='utf-8').splitlines():
      _, kinds, group = line.split(':', 2)
      if kinds and kind not in kinds.split(','):
        continue
      place = root / 'sys/fs/cgroup' / (kind if kinds else '') / group.lstrip('/')
      # A container sees its own group as the top one, whatever it is called outside.
      for part in [place, *place.parents][: len(pathlib.PurePath(group).parts)]:
        yield part, not kinds


def number(file: pathlib.Path, before: str = '') -> int:
  """The number of a file, or of its line that begins with `before`; ValueError if it is none."""
  lines = file.read_text(encoding='utf-8').splitlines()
  return int(next((line for line in lines if line.startswith(before)), '')[len(before) :])


def usable_cpus(root: pathlib.Path = _ROOT) -> int:
  """Of this machine's processors, as many as this process may use, by affinity and by time.

  A container of `docker run --cpus=2` sees all processors, and has the time of two.

  Args:
    root: of the file system.
  """
  here = hasattr(os, 'sched_getaffinity')
  usable = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
  for place, is_new in folders('cpu', root):
    with contextlib.suppress(OSError, ValueError):  # 'max' and no file are no limit
      if is_new:
        time, period = map(int, (place / 'cpu.max').read_text(encoding='utf-8').split())
      else:
        time, period = (number(place / f'cpu.cfs_{name}_us') for name in ('quota', 'period'))
      if time > 0 and period > 0:
        usable = min(usable, math.ceil(time / period))
  return usable
