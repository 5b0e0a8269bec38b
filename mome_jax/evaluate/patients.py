"""Whose scans are scored: those of one patient are drawn and tested together.

In rows and in `cases.csv` a patient of several scans is called as the first of them is, so that no
identifier of a person gets there.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.bricks.records import Key

FIELD = 'patient'


def called(patients: Mapping[Key, Hashable]) -> dict[Key, str]:
  """Case -> 'dataset/case' of the first scan of its patient, of those who have several.

  Args:
    patients: case -> whatever tells its patient from others.
  """
  scans: dict[Hashable, list[Key]] = {}
  for key in sorted(patients):
    scans.setdefault(patients[key], []).append(key)
  return {key: '/'.join(keys[0]) for keys in scans.values() if len(keys) > 1 for key in keys}


def of_cases(rows: Iterable[Mapping[str, Any]], cases: Sequence[Key]) -> list[Hashable]:
  """Whose each case is, as rows of it say; a case that none of them names is its own patient's."""
  known = {(row.get('source', ''), row['case']): row[FIELD] for row in rows if row.get(FIELD)}
  return [known.get(case, case) for case in cases]
