"""Drawn splits stay as they were drawn."""

import dataclasses
from collections.abc import Mapping, Sequence

from input_pipeline import sources
from input_pipeline.sources import files


def keep(cases: Sequence[sources.Case], drawn: Mapping[str, str]) -> list[sources.Case]:
  """Puts cases whose split is a draw into the one that was drawn for them before.

  So what was trained on is never held out later, and what is held out stays so. New cases come as
  they were drawn now; where then none is held out, a new one is.

  Args:
    cases: of one source, as it lists them.
    drawn: name -> split of the cases that were there before.
  """
  ours = {case.name: drawn.get(case.name, case.split) for case in cases if case.drawn}
  new = sorted(ours.keys() - drawn.keys(), key=files.fraction)
  if new and len(ours) > 1 and set(ours.values()) == {'train'}:
    ours[new[0]] = 'validation'
  return [
    dataclasses.replace(case, split=ours[case.name]) if case.drawn else case for case in cases
  ]
