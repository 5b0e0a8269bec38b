"""What is prepared of a source already, for the preparation that takes its place."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from input_pipeline import bricks
from input_pipeline.bricks import Key, writer
from input_pipeline.errors import UserError
from input_pipeline.patients import patient_groups


class PrepareError(UserError):
  """What was asked for cannot be done; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class Earlier:
  """What is prepared already: its folder, its settings (None if nothing is), what came of cases."""

  folder: epath.Path
  settings: dict | None
  outcomes: Sequence[writer.Outcome]

  def check(self, settings: Mapping[str, Any], groups: object) -> None:
    """PrepareError if what is prepared was asked for otherwise; it names what differs.

    Args:
      settings: that are asked for now.
      groups: None where none are.
    """
    if self.settings is None:
      return
    known = self.settings['settings']
    # Before 1.1.0 the source was not noted.
    differ = [field for field in settings if known.get(field, settings[field]) != settings[field]]
    if differ:
      shown = ', '.join(f'{field} {known[field]}, not {settings[field]}' for field in differ)
      raise PrepareError(
        f'{self.folder}: prepared with {shown}; pass --overwrite to replace it, or another '
        '--data_dir or --name'
      )
    if self.settings.get('groups') and groups is None:
      raise PrepareError(
        f'{self.folder}: prepared with --groups; pass the file again, or --overwrite to do without'
      )

  def drawn(self) -> dict[str, str]:
    """Case -> split, of every case that ever was in one."""
    splits = {outcome.name: outcome.split for outcome in self.outcomes}
    splits |= {name: split for _, name, split in (self.settings or {}).get('assigned', ())}
    return splits | (self.settings or {}).get('drawn', {})

  def drawn_elsewhere(self, own: Collection[Key], manual_dir: str | None) -> dict[Key, str]:
    """(source, case) -> split that is held out most, of what was drawn for sources beside it.

    A source counts by its own name, and by that which it is prepared by.

    Args:
      own: cases whose names are their folder's: in another folder they are other scans.
      manual_dir: that folder.
    """
    most: dict[Key, str] = {}
    for name in bricks.prepared_sources(self.folder.parent):
      report = bricks.read_settings(self.folder.parent, name)
      if report is None or name == self.folder.name:
        continue
      source = report['settings'].get('source', name)
      others = own if report.get('manual_dir') not in (None, manual_dir) else ()
      for case, split in report.get('drawn', {}).items():
        for key in {(source, case), (name, case)} - {*others}:  # groups may know either
          most[key] = max(split, most.get(key, split), key=patient_groups.HELD_OUT.index)
    return most

  def is_current(self, keys: Sequence[str], patients: Sequence[Sequence[str]]) -> bool:
    """Whether it holds just these cases of these patients, and none was skipped."""
    if self.settings is None or self.settings['skipped']:
      return False
    if self.settings.get('patients', []) != patients:
      return False
    return list(keys) == [outcome.key for outcome in self.outcomes]


def read(folder: epath.Path) -> Earlier:
  """What is prepared in a folder; PrepareError if other files lie there: they would be replaced."""
  known = ('bricks', 'volumes', bricks.OUTCOMES, bricks.SETTINGS)
  other = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
  other = [name for name in other if name not in known and not name.startswith('.')]
  if other:
    raise PrepareError(
      f'{folder}: holds {other[0]}, which is of no prepared source; choose another --data_dir or '
      '--name, or move it away'
    )
  settings = bricks.read_settings(folder.parent, folder.name)
  # Earlier versions did not note the source of a case.
  outcomes = [
    dataclasses.replace(outcome, source=outcome.source or folder.name)
    for outcome in (writer.read_outcomes(folder) if settings else ())
  ]
  return Earlier(folder, settings, outcomes)
