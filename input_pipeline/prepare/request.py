"""What `prepare` is asked for, and what that comes to beside what is prepared already."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import sources
from input_pipeline.bricks import records, writer
from input_pipeline.patients import patient_groups
from input_pipeline.prepare.prepared import Earlier
from input_pipeline.sources import splits


@dataclasses.dataclass(frozen=True)
class Plan:
  """The cases to write, and what is noted of them.

  Attributes:
    earlier: what is prepared already.
    cases: with the splits that they get.
    keys: of `writer.Conversion`, of each of them.
    new_draws: name -> split of those whose split is a draw.
    assigned: source, case and split of each that is there twice; None without folds.
    notes: of what became of groups, for people.
    is_current: whether all of this is prepared.
  """

  earlier: Earlier
  cases: Sequence[sources.Case]
  keys: Sequence[str]
  new_draws: Mapping[str, str]
  assigned: Sequence[tuple[str, str, str]] | None
  notes: Sequence[str]
  is_current: bool

  def unchanged(self) -> dict[str, Any]:
    """The report where it is current."""
    outcomes = self.earlier.outcomes
    return (self.earlier.settings or {}) | {'changes': changes(outcomes, outcomes)}


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for.

  Attributes:
    settings: what must be the same where prepared cases are taken over.
    conversion: how cases are converted.
    cases: as the source lists them.
    manual_dir: where the source lies, absolute.
    patients: source, name and patient of each case in a group or whose source says it.
    groups: of the same patient, None for none.
    folds: see `prepare.prepare`.
    overwrite: see there.
  """

  settings: Mapping[str, Any]
  conversion: writer.Conversion
  cases: Sequence[sources.Case]
  manual_dir: str | None
  patients: Sequence[Sequence[str]]
  groups: patient_groups.Groups | None
  folds: bool
  overwrite: bool

  def plan(self, earlier: Earlier) -> Plan:
    """What it comes to; PrepareError if what is prepared was asked for otherwise."""
    if not self.overwrite:
      earlier.check(self.settings, self.groups)
    cases, notes = self._split(earlier)
    # Sampling balances over the sources of cases.
    source, name = self.settings['source'], earlier.folder.name
    cases = [dataclasses.replace(c, source=name) if c.source == source else c for c in cases]
    cases = _first_of_each_split(cases, self.settings['limit'])
    new_draws = {case.name: case.split for case in cases if case.drawn}
    assigned = None
    if self.folds or (earlier.settings or {}).get('assigned') and not self.overwrite:
      cases, assigned = _both_ways(cases)
    keys = [self.conversion.key(case) for case in cases]
    is_current = not self.overwrite and earlier.is_current(keys, self.patients)
    return Plan(earlier, cases, keys, new_draws, assigned, notes, is_current)

  def _split(self, earlier: Earlier) -> tuple[list[sources.Case], list[str]]:
    """The cases in the splits that they keep or get, and what is to be told of that."""
    drawn = earlier.drawn()
    cases = splits.keep(self.cases, drawn)
    if self.groups is None:
      return cases, []
    before = {c.key: drawn[c.name] for c in cases if c.drawn and c.name in drawn}
    # The cases of a public dataset are the same wherever they lie.
    is_public = sources.get_source(self.settings['source']).expected is not None
    own = set() if is_public else {case.key for case in self.cases}
    elsewhere = earlier.drawn_elsewhere(own, self.manual_dir)
    cases, notes = patient_groups.keep_together(cases, self.groups.groups, elsewhere | before)
    return cases, [f'{self.groups.path}: {note}' for note in notes]


def _first_of_each_split(cases: Sequence[sources.Case], limit: int | None) -> list[sources.Case]:
  names = sorted({case.split for case in cases})
  return [case for split in names for case in [c for c in cases if c.split == split][:limit]]


def _both_ways(
  cases: Sequence[sources.Case],
) -> tuple[list[sources.Case], list[tuple[str, str, str]]]:
  """Every case but those of the test split twice, for training and as a whole scan.

  Returns:
    The cases; and source, name and split of each that is there twice.
  """
  pool = [case for case in cases if case.split != 'test']
  both = [
    dataclasses.replace(case, split=split) for split in ('train', records.POOL) for case in pool
  ]
  rest = [case for case in cases if case.split == 'test']
  return [*both, *rest], [(case.source, case.name, case.split) for case in pool]


def changes(before: Sequence[writer.Outcome], after: Sequence[writer.Outcome]) -> dict[str, int]:
  """How many cases were added, replaced, removed and kept."""
  old, new = (
    {(o.source, o.name, o.split == records.POOL): o.key for o in part} for part in (before, after)
  )
  kept = sum(old.get(case) == key for case, key in new.items())
  return {
    'added': len(new.keys() - old.keys()),
    'replaced': len(new.keys() & old.keys()) - kept,
    'removed': len(old.keys() - new.keys()),
    'kept': kept,
  }
