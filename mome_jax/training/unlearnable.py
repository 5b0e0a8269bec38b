"""Which classes of a run its training scans teach nothing of."""

import os
from collections.abc import Sequence

from input_pipeline import bricks, sources
from input_pipeline.bricks.command import prepare_command
from mome_jax.errors import ConfigError


def unlearnable(stores: Sequence[bricks.Store], classes: Sequence[str]) -> list[str]:
  """What a run cannot learn of its classes, a line each for people; empty if there is nothing.

  Such classes are scored all the same: in a fold of a cross-validation, which may hold out every
  scan of a rare one, their Dice of 0 goes into the mean of all.

  Args:
    stores: that the run is trained on.
    classes: of the run.
  """
  labelled = _labelled(stores)
  shown = _shown(stores, classes)
  unlabelled = [name for name in classes if name not in labelled]
  empty = [name for name in classes if name in labelled and name not in shown]
  lines = []
  if unlabelled:
    lines.append(
      f'CAUTION: no training scan labels {", ".join(unlabelled)}: this run does not learn them; '
      'their masks mean nothing'
    )
  if empty:
    lines.append(
      f'CAUTION: no training scan shows {", ".join(empty)}: this run learns only where they are not'
    )
  return lines


def check(stores: Sequence[bricks.Store], classes: Sequence[str]) -> None:
  """Refuses a run that could learn nothing: no training scan shows any of its classes.

  Args:
    stores: that the run is trained on.
    classes: of the run.

  Raises:
    ConfigError: with the classes that the scans do show.
  """
  if _shown(stores, classes):
    return
  shown = _shown(stores, sorted(_labelled(stores)))
  has = f'they show {", ".join(shown)}' if shown else 'nor any other class'
  raise ConfigError(
    f'no training scan of {", ".join(store.name for store in stores)} shows {" or ".join(classes)} '
    f'({has}), so there is nothing to learn; add a source that does to config.data.sources, or '
    'choose other config.classes'
  )


def _labelled(stores: Sequence[bricks.Store]) -> set[str]:
  return {name for store in stores for case in store.cases for name in case.labelled}


def _shown(stores: Sequence[bricks.Store], classes: Sequence[str]) -> list[str]:
  """The classes that have a voxel."""
  voxels = sum(store.class_voxels(classes).sum(0) for store in stores)
  return [name for name, count in zip(classes, voxels, strict=True) if count]


def outdated(
  stores: Sequence[bricks.Store], classes: Sequence[str], data_dir: str | os.PathLike
) -> list[str]:
  """What sources that an earlier version prepared do not teach, a line each.

  They stay valid: nothing is learned from what they do not tell, as before. Of a scan that declares
  what it cannot show, these classes are learned; of one that tells what is around the patient, that
  no class is there.

  Args:
    stores: that the run is trained on.
    classes: of the run.
    data_dir: of the prepared sources.
  """
  lines = []
  for store in stores:
    report = bricks.read_settings(data_dir, store.name)
    source = sources.SOURCES.get(((report or {}).get('settings') or {}).get('source', store.name))
    known = {name for case in store.cases for name in case.supervised}
    again = f'prepare it again with {prepare_command(data_dir, store.name, report)}'
    missing = [name for name in classes if source and name in source.absent - known]
    if missing:
      lines.append(
        f'note: {store.name} was prepared before it declared that its scans cannot show '
        f'{", ".join(missing)}: this run does not learn that; {again}'
      )
    unknown = [c for c in classes if any(c not in case.supervised for case in store.cases)]
    if unknown and not store.tells_outside:
      lines.append(
        f'note: {store.name} was prepared before the air around patients was told: that '
        f'{", ".join(unknown)} cannot be there is not learned from it; {again}'
      )
  return lines
