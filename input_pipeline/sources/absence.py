"""What it means where a label map has no voxel of a class: not labelled there, or not there.

A class that is merely not labelled must not be taught as background, nor a right mask of it scored
as wrong. No file can tell the two apart, so whoever knows is asked.
"""

import functools
import pathlib
import sys
import types
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from input_pipeline import progress
from input_pipeline.ct import volume
from input_pipeline.errors import UserError, few
from input_pipeline.sources import files, labels
from input_pipeline.sources.base import SourceError

UNLABELLED, ABSENT = 'unlabelled', 'absent'
_FIELD = '"missing_is"'
_SHOWN = 3  # classes of a message


def occurring(
  maps: Mapping[str, pathlib.Path], meanings: Mapping[int, labels.Meaning]
) -> dict[str, frozenset[str]]:
  """Case -> names of which its label map has voxels; maps that cannot be read are left out.

  Args:
    maps: case -> label map.
    meanings: label value -> what it stands for, as `labels.convert`.
  """
  occurs = {}
  for name, path in progress.bar(maps.items(), desc='labels', unit='case', delay=2):
    try:
      state = path.stat()
      values = _values(path, state.st_mtime_ns, state.st_size)
    except (OSError, UserError):  # the case will fail, and say why
      continue
    if not values - meanings.keys() - {0}:  # of an unknown value the same
      occurs[name] = labels.names_of({v: meanings[v] for v in values if v})
  return occurs


@functools.cache  # a command that checks, prepares and plans lists its cases several times
def _values(path: pathlib.Path, changed: int, size: int) -> frozenset[int]:
  """What a label map holds, of a file as it was changed last."""
  del changed, size
  return frozenset(np.unique(volume.read_labels(path).array).tolist())


def partial(
  occurs: Mapping[str, frozenset[str]],
  names: Sequence[str],
  declared: Mapping[str, Collection[str]] = types.MappingProxyType({}),
) -> dict[str, tuple[list[str], list[str]]]:
  """Name -> the cases with it and those without, of the names that not all cases have.

  Args:
    occurs: case -> names of which its label map has voxels.
    names: to look at.
    declared: case -> names of which it is known why they have none.
  """
  table = {}
  for name in names:
    cases = [case for case, held in occurs.items() if name in held]
    others = [case for case, held in occurs.items() if name not in held | {*declared.get(case, ())}]
    if others:
      table[name] = cases, others
  return table


def by_case(table: Mapping[str, tuple[list[str], list[str]]]) -> str:
  """Classes by cases as a Markdown table; cases that hold the same of them share a row.

  Args:
    table: of `partial`.
  """
  holding = [set(held) for held, _ in table.values()]
  same: dict[tuple[bool, ...], list[str]] = {}
  for case in sorted({case for pair in table.values() for case in (*pair[0], *pair[1])}):
    same.setdefault(tuple(case in held for held in holding), []).append(case)
  rows = [('label maps', *table), ('--',) * (len(table) + 1)]
  for pattern, held_by in same.items():
    rows.append((few(held_by), *('x' if held else '' for held in pattern)))
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def ask(index: pathlib.Path, table: Mapping[str, tuple[list[str], list[str]]]) -> None:
  """SourceError where some label maps lack a class, and nothing says what that means.

  Prints which do, as of `by_case`, to the standard error.

  Args:
    index: the file that should say it.
    table: of `partial`.
  """
  if not table:
    return
  print(by_case(table), file=sys.stderr)
  lines = [_line(name, *cases) for name, cases in table.items()]
  more = f', and {len(lines) - _SHOWN} more classes' if len(lines) > _SHOWN else ''
  raise SourceError(
    f'{index}: {"; ".join(lines[:_SHOWN])}{more}; say what that means: {_FIELD}: "{UNLABELLED}" '
    f'(it is neither trained nor scored there) or "{ABSENT}" (it is not in the patient), or list '
    '"supervised"'
  )


def tell(table: Mapping[str, tuple[list[str], list[str]]]) -> None:
  """Notes which classes are taken as not labelled, and in how many cases."""
  for name, cases in table.items():
    files.note(f'{_line(name, *cases)}: not labelled there, neither trained nor scored')


def _line(name: str, cases: Sequence[str], others: Sequence[str]) -> str:
  count = len(cases) + len(others)
  return f'{name!r} is in {len(cases)} of {count} label maps, not in {few(others)}'


def reads(index: Mapping, path: pathlib.Path) -> str:
  """What `missing_is` says: one of the two words, or '' where it is not given.

  Raises:
    SourceError: if it says anything else.
  """
  word = index.get('missing_is', '')
  if word not in ('', UNLABELLED, ABSENT):
    raise SourceError(f'{path}: {_FIELD} is {word!r}; expected "{UNLABELLED}" or "{ABSENT}"')
  return word
