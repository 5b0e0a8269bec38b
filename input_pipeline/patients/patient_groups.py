"""The file of groups: which cases, of whatever sources, are scans of the same patient.

`dedupe` writes it and `prepare` reads it, so that a group never crosses splits.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from input_pipeline import errors, sources
from input_pipeline.bricks import identity
from input_pipeline.errors import UserError
from input_pipeline.files import text_files

# Where the parts of a file begin that are compared: multiples of the golden ratio, so that those of
# a volume lie at different places of its slices, and not all in the margin of air.
_PARTS = tuple(n * 0.618034 % 1 for n in range(12))
_PART_BYTES = 1024
HELD_OUT = ('train', 'validation', 'test')  # from the least to the most


class GroupsError(UserError):
  """A file of groups that is none, or is older than the scans; the message names it and the fix."""


@dataclasses.dataclass(frozen=True)
class Groups:
  """What a file of groups says.

  Attributes:
    path: of the file.
    groups: each with its `split` and its `members`, pairs of source and case.
    scans: (source, case) -> `state_of` what was there; None where that was not noted. Files of
      before hold the first of its two values alone.
    unread: those of them that could not be read, and so were compared with none.
  """

  path: str
  groups: Sequence[Mapping]
  scans: Mapping[tuple[str, str], tuple] | None
  unread: Collection[tuple[str, str]]

  def knows(self, source: str) -> bool:
    """Whether scans of a source are among those that were compared."""
    return any(source == of for of, _ in self.scans or ())

  @property
  def digest(self) -> str:
    """Sha-256 of the groups, hexadecimal."""
    return hashlib.sha256(json.dumps(self.groups).encode()).hexdigest()

  def check_current(self, cases: Sequence[sources.Case], fix: str) -> None:
    """Checks that no scan came or was replaced since the groups were found; notes the unread.

    Nor may patients have been declared since whom the groups divide.

    Args:
      cases: that are there now.
      fix: the option with which to run `dedupe` again.

    Raises:
      GroupsError: if any did.
    """
    if self.scans is None:
      print(
        f'note: {self.path} does not say which scans were compared; run mome dedupe '
        'again where any came since',
        file=sys.stderr,
      )
      return
    other = [case for case in cases if not self._is_current(case)]
    if other:
      raise GroupsError(
        f'{self.path}: {len(other)} of {len(cases)} scans were not there or not the same when it '
        f'was made, such as {other[0].name}; run mome dedupe again with {fix}'
      )
    self._check_patients(cases, fix)
    unread = [case.name for case in cases if case.key in self.unread]
    if unread:
      print(
        f'note: {self.path}: {len(unread)} of {len(cases)} scans could not be read when it was '
        f'made, such as {unread[0]}, and were compared with none; correct them and run '
        f'mome dedupe again with {fix}',
        file=sys.stderr,
      )

  def _check_patients(self, cases: Sequence[sources.Case], fix: str) -> None:
    number = {tuple(key): n for n, group in enumerate(self.groups) for key in group['members']}
    for keys in declared(cases):
      if len({number.get(key, key) for key in keys}) > 1:
        raise GroupsError(
          f'{self.path}: {keys[0][1]} and {keys[-1][1]} are of one patient, which was not known '
          f'when it was made; run mome dedupe again with {fix}'
        )

  def _is_current(self, case: sources.Case) -> bool:
    known = (self.scans or {}).get(case.key)
    return known is not None and state_of(case)[: len(known)] == known


def read(path: str) -> Groups:
  """Reads what `write` wrote.

  Raises:
    GroupsError: if it cannot be read or is no such file.
    TextFileError: if it is no JSON.
  """
  try:
    content = text_files.read_json(path)
    groups = [{'split': g['split'], 'members': g['members']} for g in content['groups']]
    for group in groups:
      HELD_OUT.index(group['split'])
      for key in group['members']:
        if not (text_files.are_texts(key) and len(key) == 2):
          raise ValueError(f'member {key!r}, expected [source, case]')
    listed = content.get('scans')
    scans = None
    if listed is not None:
      scans = {(source, name): (size, *more) for source, name, size, *more in listed}
    unread = {(source, name) for source, name in content.get('unread', ())}
  except UserError:
    raise
  except OSError as error:
    raise GroupsError(f'{path}: cannot be read ({error.strerror}); correct --groups') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise GroupsError(f'{path}: not a file of mome dedupe ({error!r})') from error
  return Groups(path, groups, scans, unread)


def write(
  path: pathlib.Path,
  groups: Sequence[Mapping],
  cases: Iterable[sources.Case],
  unread: Sequence[tuple[str, str]],
) -> None:
  """Writes what `read` reads.

  Args:
    path: JSON file.
    groups: as of `Groups`.
    cases: that were there.
    unread: (source, case) of those that could not be read.

  Raises:
    UserError: if the file cannot be written.
  """
  with errors.writing(path):
    scans = [(case.source, case.name, *state_of(case)) for case in cases]
    content = {'groups': groups, 'scans': scans, 'unread': unread}
    text_files.replace(path, json.dumps(content, indent=1) + '\n')


def join(groups: Iterable[Sequence[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
  """Groups of keys (source, case), those that share one made one; in order."""
  joined: list[set] = []
  for keys in map(set, groups):
    for other in [group for group in joined if keys & group]:
      joined.remove(other)
      keys |= other
    joined.append(keys)
  return sorted(map(sorted, joined))


def declared(cases: Iterable[sources.Case]) -> list[list[tuple[str, str]]]:
  """Keys (source, case) of each patient with several cases, by what one download says."""
  patients: dict[tuple[str, str], list[tuple[str, str]]] = {}
  for case in cases:
    patient = case.patient or case.name
    patients.setdefault((case.source, patient), []).append(case.key)
  return [keys for keys in patients.values() if len(keys) > 1]


def keep_together(
  cases: Sequence[sources.Case],
  groups: Iterable[Mapping],
  drawn: Mapping[tuple[str, str], str] | None = None,
) -> tuple[list[sources.Case], list[str]]:
  """Moves the cases of a group to the split that is held out most in the group.

  That is of the split in the file, which was drawn for the scans of that day, those of the cases,
  and what was drawn for members before: so what is held out stays so.

  Args:
    cases: of any sources.
    groups: as of `Groups`.
    drawn: (source, case) -> split of members, whatever their source, that were drawn before.

  Returns:
    The cases, and what is to be told of groups and cases that moved.
  """
  drawn = drawn or {}
  now = {case.key: case.split for case in cases}
  of_group: dict[tuple[str, str], str] = {}
  kept = []
  for group in groups:
    keys = [tuple(key) for key in group['members']]
    known = [(splits[key], key) for splits in (now, drawn) for key in keys if key in splits]
    split = max([group['split'], *(split for split, _ in known)], key=HELD_OUT.index)
    of_group |= dict.fromkeys(keys, split)
    if split != group['split']:
      first = '/'.join(dict(reversed(known))[split])
      kept.append(f'{first} ({split}, not {group["split"]})')
  moved = [
    f'{"/".join(key)} ({drawn[key]}, now {of_group[key]})'
    for key in (case.key for case in cases)
    if key in of_group and drawn.get(key, of_group[key]) != of_group[key]
  ]
  notes = []
  if kept:
    notes.append(f'groups that are held out more than when they were found: {errors.few(kept)}')
  if moved:
    notes.append(
      f'drawn before for another split than that of their group: {errors.few(moved)}; models that '
      'were trained before may have learned from what is held out now'
    )
  together = [dataclasses.replace(case, split=of_group.get(case.key, case.split)) for case in cases]
  return together, notes


def patients(groups: Iterable[Mapping]) -> dict[tuple[str, str], str]:
  """(source, case) -> what the patient is called: the first 'source/case' of the group."""
  return {
    tuple(key): min('/'.join(member) for member in group['members'])
    for group in groups
    for key in group['members']
  }


def state_of(case: sources.Case) -> tuple[int, str]:
  """Bytes of a case's files, and 16 hexadecimal digits of what they hold.

  Another scan under its name has others; a copied download has not, whatever the times of its
  files. Parts are read of each file, as two scans differ nearly everywhere.
  """
  size, digest = 0, hashlib.sha256()
  for path in filter(os.path.exists, identity.files_of(case.load)):
    length = os.path.getsize(path)
    size += length
    with contextlib.suppress(OSError), open(path, 'rb') as file:  # told where the scan is read
      for share in _PARTS:
        file.seek(int(share * max(length - _PART_BYTES, 0)))
        digest.update(file.read(_PART_BYTES))
  return size, digest.hexdigest()[:16]
