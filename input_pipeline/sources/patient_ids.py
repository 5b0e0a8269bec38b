"""Whose scans they are: the field `patients` of a `dataset.json`, as no split divides a patient.

A case that it does not name is of a patient of its own, who is called as the case is.
"""

import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from input_pipeline.sources import files
from input_pipeline.sources.base import SourceError

FIELD = 'patients'
# 'p00_arterial': who, with a number in it, and which scan of theirs.
_SCAN_OF_A_PATIENT = re.compile(r'(.*\d.*)[_\- ]([^_\- ]+)')


def read(index: Mapping[str, Any], path: pathlib.Path, cases: Collection[str]) -> dict[str, str]:
  """Case -> patient, of the cases that the field names.

  Args:
    index: content of the file.
    path: of the file.
    cases: names of all that there are.

  Raises:
    SourceError: if it is no mapping of cases to texts, or names what is no case; it names all.
  """
  given = index.get(FIELD) or {}
  if not isinstance(given, Mapping):
    raise SourceError(f'{path}: "{FIELD}" must map cases to patients, as {{"p00_arterial": "p00"}}')
  faults = []
  for name, patient in given.items():
    if name not in cases:
      faults.append(f'{FIELD} names the case {name!r}, which is not there')
    if not isinstance(patient, str) or not patient.strip():
      faults.append(f'{FIELD}: {name!r} is of {patient!r}; expected a text')
  if faults:
    raise SourceError(f'{path}: {"; ".join(faults)}')
  return {name: patient.strip() for name, patient in given.items()}


def of_headers(ids: Mapping[str, str], cases: int, source: str) -> dict[str, str]:
  """Case -> patient, of patients with several cases; who is called as the first of them.

  So no PatientID goes into what is prepared. One that all cases have does not count; a note says
  so, and which cases are of one patient.

  Args:
    ids: case -> PatientID, of those that have one.
    cases: number of those that could have one.
    source: as notes name it.
  """
  same: dict[str, list[str]] = {}
  for name, patient in ids.items():
    same.setdefault(patient, []).append(name)
  several = [names for names in same.values() if len(names) > 1]
  if several and len(several[0]) == cases:
    files.note(
      f'{source}: all folders have one PatientID, which therefore does not count; say with '
      f'"{FIELD}" in dataset.json which are of one patient'
    )
    return {}
  if several:
    told = '; '.join(' and '.join(names) for names in several)
    files.note(f'{source}: of one patient, by PatientID, and in one split: {told}')
  return {name: names[0] for names in several for name in names}


def hold_out(names: Iterable[str], patients: Mapping[str, str], share: float) -> set[str]:
  """The cases of some patients; these are drawn as names are by `files.hold_out`.

  Args:
    names: of the cases.
    patients: case -> patient, as `read` gives it.
    share: of the patients.
  """
  who = {name: patients.get(name, name) for name in names}
  held = files.hold_out(set(who.values()), share)
  return {name for name, patient in who.items() if patient in held}


def check(splits: Mapping[str, str], patients: Mapping[str, str], path: pathlib.Path) -> None:
  """SourceError, which names all, if scans of one patient are in several splits.

  Args:
    splits: case -> split.
    patients: case -> patient, as `read` gives it.
    path: that declares them.
  """
  first: dict[str, str] = {}
  faults = {}
  for name in sorted(splits):
    patient = patients.get(name, name)
    other = first.setdefault(patient, name)
    if splits[name] != splits[other]:
      faults[patient] = f'{splits[other]} ({other}) and {splits[name]} ({name})'
  if faults:
    told = '; '.join(f'{patient!r} is in {places}' for patient, places in faults.items())
    raise SourceError(
      f'{path}: a patient belongs to one split, and {told}; correct "splits", move scans, or say '
      f'in "{FIELD}" whose they are'
    )


def tell(index: Mapping[str, Any], path: pathlib.Path, names: Collection[str]) -> None:
  """Notes names that look like several scans of one patient, where the field is not there.

  Such names are equal up to their last part, with a number in it (the patient's): 'p00_arterial'
  and 'p00_venous'. Cases that a site or a task numbers ('case_001', 'site1_001') do not: there is
  no number, or one stem has more cases than there are stems.

  Args:
    index: content of the file.
    path: of the file.
    names: of the cases.
  """
  if FIELD in index:
    return
  scans: dict[str, list[str]] = {}
  for name in sorted(names):
    if parts := _SCAN_OF_A_PATIENT.fullmatch(name):
      scans.setdefault(parts[1], []).append(name)
  several = {stem: of_stem for stem, of_stem in scans.items() if len(of_stem) > 1}
  if len(several) < 2 or max(map(len, several.values())) > len(scans):
    return
  stem, (one, other, *_) = next(iter(several.items()))
  files.note(
    f'{path}: {len(several)} patients seem to have several scans, such as {one} and {other}, and '
    f'splits and folds would divide them; say whose they are, "{FIELD}": {{"{one}": "{stem}", '
    f'"{other}": "{stem}", ...}}, or that each is of another patient, "{FIELD}": {{}}'
  )
