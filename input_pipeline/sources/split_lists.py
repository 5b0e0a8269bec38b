"""The lists of `splits` in a `dataset.json`: which cases are trained on, which are held out."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from input_pipeline.files import text_files
from input_pipeline.sources.base import SourceError

_SPLITS = ('train', 'validation', 'test')


def read(
  index: Mapping[str, Any], path: pathlib.Path, cases: Collection[str]
) -> tuple[dict[str, str], list[str], list[str]]:
  """Case -> split of the cases that are listed; names that are no case; what else is wrong.

  Args:
    index: content of the file.
    path: of the file.
    cases: names of all that there are.

  Raises:
    SourceError: if `splits` are no lists of names.
  """
  given = index.get('splits') or {}
  if not isinstance(given, dict) or set(given) - set(_SPLITS):
    raise SourceError(f'{path}: "splits" must map train, validation or test to lists of cases')
  splits: dict[str, str] = {}
  unknown, faults = [], []
  for split, names in given.items():
    if not text_files.are_texts(names):
      raise SourceError(f'{path}: "splits" must map {split} to a list of cases, not to {names!r}')
    for name in names:
      if name not in cases:
        unknown.append(name)
      elif splits.setdefault(name, split) != split:
        faults.append(f'{name!r} is in two splits; keep one')
  return splits, unknown, faults
