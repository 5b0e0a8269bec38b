"""Which scans a run is measured on while it trains: never those that it is trained on.

With `config.validation.cases` a part of the training cases is set aside: choices may be made on
them. Without, the validation scans of the sources are watched, on which the run will be scored: a
choice made on them would be no choice on unseen scans, so none is made.
"""

import dataclasses
from collections.abc import Collection, Sequence

import ml_collections
import numpy as np
from etils import epath

from input_pipeline import bricks
from input_pipeline.anatomy import Template
from input_pipeline.patients import patient_folds
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.checkpoint.training_cases import TrainingCases

_WATCHED = 8  # scans of each source: they are held in memory


@dataclasses.dataclass(frozen=True)
class HeldOutScans:
  """Scans to measure a run on.

  Attributes:
    stores: to draw patches from.
    chooses: whether they are set aside, so that the best checkpoint may be chosen on them.
    about: which they are, in words.
  """

  stores: Sequence[bricks.Store]
  chooses: bool
  about: str


def split(
  config: ml_collections.ConfigDict,
  stores: Sequence[bricks.BrickStore],
  template: Template,
  workdir: epath.Path,
  fold: Collection[bricks.Key] | None = None,
) -> tuple[list[bricks.BrickStore], HeldOutScans | None]:
  """What is trained on, and what is held out from it.

  The same for a run that goes on as for one that begins. No scan that the model of
  `init.checkpoint` was trained on is held out.

  Args:
    config: the whole config; uses `validation`, `classes`, `data_dir` and `init.checkpoint`.
    stores: the prepared sources.
    template: of the run.
    workdir: of the run.
    fold: cases that are held out from training, of `folds.of_run`; None: as prepared.

  Returns:
    The stores without what is set aside; and the scans held out, None where there are none.
  """
  seen = _seen(config, workdir)
  if not config.validation.cases:
    held_out = _watched(config, stores, template, seen, fold) if config.validation.every else None
    return list(stores), held_out
  cases = [case for store in stores for case in store.cases]
  groups: dict[patient_folds.Key, str] = {}
  for store in stores:
    groups |= bricks.read_patients(config.data_dir, store.name)
  without = {case.key for case in cases if seen and seen.reason(case)}
  patients = patient_folds.patients(cases, groups)
  parts = patient_folds.set_aside(
    cases,
    patients,
    config.validation.cases,
    classes=config.classes,
    without=without,
    shown=_shown(stores, config.classes),
  )
  taken = {key for part in parts.values() for key in part.cases}
  rest = [case.key for case in cases if case.key not in taken]
  training = [store.part(rest) for store in stores]
  if not taken:
    return list(stores), None
  about = ', '.join(f'{len(part.cases)} of {part.total} {name}' for name, part in parts.items())
  parts_held_out = [store.part(taken) for store in stores]
  return training, HeldOutScans(parts_held_out, True, f'scans set aside from training: {about}')


def _shown(
  stores: Sequence[bricks.BrickStore], classes: Sequence[str]
) -> dict[bricks.Key, list[str]]:
  """The classes that have a voxel in each case."""
  shown = {}
  for store in stores:
    voxels = np.zeros((len(store.cases), len(classes)), np.int64)
    np.add.at(voxels, store.case, store.class_voxels(classes))
    for case, row in zip(store.cases, voxels, strict=True):
      names = [name for name, count in zip(classes, row, strict=True) if count]
      shown[case.source, case.name] = names
  return shown


def _seen(config: ml_collections.ConfigDict, workdir: epath.Path) -> TrainingCases | None:
  """What the run has trained on, and the model it began with."""
  if checkpoint.goes_on(workdir):
    return training_cases.read(workdir)
  init = config.init.checkpoint
  return training_cases.read(checkpoint.folder_of(init)) if init else None


def _watched(
  config: ml_collections.ConfigDict,
  stores: Sequence[bricks.BrickStore],
  template: Template,
  seen: TrainingCases | None,
  fold: Collection[bricks.Key] | None,
) -> HeldOutScans | None:
  held_out, about = [], []
  for store in stores:
    listed = bricks.held_out_cases(config.data_dir, store.name, fold)
    numbers = [
      number
      for number, case in enumerate(listed)
      if case.split == 'validation' and not (seen and seen.reason(case))
    ]
    numbers.sort(key=lambda n: patient_folds.place(f'{listed[n].source}/{listed[n].name}'))
    volumes = bricks.open_volumes(config.data_dir, store.name, template, fold)
    if numbers:
      read = (volumes[number] for number in numbers[:_WATCHED])
      mm, brick = config.data.spacing, store.brick
      part = bricks.MemoryStore(store.name, read, spacing=mm, brick=brick, template=template)
      held_out.append(part)
      about.append(f'{len(part.cases)} of {len(numbers)} {store.name}')
  if not any(set(config.classes) & set(c.labelled) for part in held_out for c in part.cases):
    return None
  return HeldOutScans(held_out, False, f'validation scans, only watched: {", ".join(about)}')
