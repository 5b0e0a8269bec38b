"""Parts of the training cases by patient: the same on every machine.

Each patient has a place in [0, 1) that depends on their key alone, whatever cases come or go. What
is set aside for validation are the first places; folds are dealt in the order of the places.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from input_pipeline.bricks.records import CaseInfo, HeldOutCase, Key
from input_pipeline.sources import files

_LARGEST_PART = 0.2  # of a dataset's cases that is set aside: one of five folds


def patients(
  cases: Iterable[CaseInfo | HeldOutCase], groups: Mapping[Key, str] | None = None
) -> dict[Key, str]:
  """What each case's patient is known by.

  Args:
    cases: of any sources.
    groups: of the cases whose patient `dedupe` or their source knows, what the patient is called;
      from `bricks.read_patients`.

  Returns:
    The group's key, or that of the first case with the same voxels, or else 'source/name'.
  """
  groups = groups or {}
  first: dict[str, str] = {}  # digest of a scan -> patient
  keys: dict[Key, str] = {}
  same: dict[str, str] = {}  # a group -> another one of the same patient
  for case in sorted(cases, key=lambda case: (case.key not in groups, case.source)):
    key = groups.get(case.key, f'{case.source}/{case.name}')
    keys[case.key] = key
    other = first.setdefault(case.digest, key) if case.digest else key
    one, two = _last(same, key), _last(same, other)
    if one != two:  # groups of several files may share a scan
      same[one] = two
  return {case: _last(same, key) for case, key in keys.items()}


def _last(same: Mapping[str, str], key: str) -> str:
  while key in same:
    key = same[key]
  return key


def place(patient: str) -> float:
  """Where a patient stands among all, in [0, 1)."""
  return files.fraction(patient)


def deal(patients: Iterable[str], folds: int) -> dict[str, int]:
  """Patient -> fold, 0..folds-1: each fold gets as many patients, or one more.

  They follow each other by their places, so that the same patients are dealt alike everywhere, and
  one who comes or goes moves one other at most between two neighbouring folds.
  """
  ordered = sorted(set(patients), key=lambda patient: (place(patient), patient))
  return {patient: rank * folds // len(ordered) for rank, patient in enumerate(ordered)}


@dataclasses.dataclass(frozen=True)
class Part:
  """What `set_aside` takes from a dataset, and how many cases it has."""

  cases: frozenset[Key]
  total: int


def set_aside(
  cases: Sequence[CaseInfo],
  patient: Mapping[Key, str],
  number: int,
  *,
  classes: Collection[str] | None = None,
  without: Collection[Key] = (),
  shown: Mapping[Key, Collection[str]] | None = None,
) -> dict[str, Part]:
  """The cases of each dataset that are not trained on, so that choices can be made on them.

  Whole patients, those with the first places, until there are `number` cases or a fifth of the
  dataset; never one without whom no training case would have a class labelled, or show it.

  Args:
    cases: that could be trained on, of any datasets.
    patient: of each case, from `patients`.
    number: of cases of each dataset.
    classes: one of which a patient must be labelled with to be taken; None: any.
    without: cases that are never taken, such as those a run's start has seen.
    shown: classes that have a voxel in each case, where that is known.

  Returns:
    Dataset -> what is taken of it.
  """
  by_patient: dict[str, list[CaseInfo]] = {}
  for case in cases:
    by_patient.setdefault(patient[case.key], []).append(case)
  barred = {patient[key] for key in without if key in patient}
  total = collections.Counter(case.source for case in cases)
  room = {source: min(number, int(_LARGEST_PART * n)) for source, n in total.items()}

  def count(cases: Iterable[CaseInfo]) -> collections.Counter:
    keys = [case.key for case in cases]
    seen = collections.Counter(
      ('shown', name) for key in keys for name in (shown or {}).get(key, ())
    )
    return seen + collections.Counter(
      ('labelled', name) for case in cases for name in case.labelled
    )

  left = count(cases)
  taken: dict[str, set[Key]] = {source: set() for source in sorted(total)}
  for who in sorted(by_patient.keys() - barred, key=place):
    theirs = by_patient[who]
    if classes is not None and not any(set(classes) & set(case.labelled) for case in theirs):
      continue
    more = collections.Counter(case.source for case in theirs)
    lost = count(theirs)
    if all(n <= room[source] for source, n in more.items()) and all(
      n < left[what] for what, n in lost.items()
    ):
      room = {source: n - more[source] for source, n in room.items()}
      left -= lost
      for case in theirs:
        taken[case.source].add(case.key)
  return {source: Part(frozenset(names), total[source]) for source, names in taken.items()}
