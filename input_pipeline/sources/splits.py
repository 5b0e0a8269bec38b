"""Drawn splits stay as they were drawn."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from input_pipeline import sources
from input_pipeline.sources import files


def keep(cases: Sequence[sources.Case], drawn: Mapping[str, str]) -> list[sources.Case]:
  """Puts cases whose split is a draw into the one that was drawn for them before.

  So what was trained on is never held out later, and what is held out stays so. New patients come
  as they were drawn now, and so do those whose scans were in several splits, before anybody said
  whose they are; where then none is held out, a new one is.

  Args:
    cases: of one source, as it lists them.
    drawn: name -> split of the cases that were there before.
  """
  before: dict[str, set[str]] = collections.defaultdict(set)  # patient -> splits
  for case in cases:
    if case.drawn and case.name in drawn:
      before[case.patient or case.name].add(drawn[case.name])
  ours = {case.patient or case.name: case.split for case in cases if case.drawn}
  kept = {patient: split for patient, (split, *more) in before.items() if not more}
  ours |= kept
  new = sorted(ours.keys() - kept.keys(), key=files.fraction)
  if new and len(ours) > 1 and set(ours.values()) == {'train'}:
    ours[new[0]] = 'validation'
  return [
    dataclasses.replace(case, split=ours[case.patient or case.name]) if case.drawn else case
    for case in cases
  ]
