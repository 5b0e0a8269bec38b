"""The synthetic cohort of the demo and of the tests."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline.ct import volume
from input_pipeline.sources.base import (
  Case,
  Scan,
  Source,
  in_template_order,
  loader,
  restrict_table,
)
from input_pipeline.sources.phantom import trunk

# Three datasets as they are in real life: two that contour one organ with its lesions, and a
# multi-organ atlas that knows no lesions. Together they label every class of the phantom in at
# least a third of the training cases, and no case labels everything.
_DATASETS = {
  'phantom_liver': ('liver', 'liver tumor'),
  'phantom_kidney': ('right kidney', 'left kidney', 'kidney cyst'),
  'phantom_organs': (
    'spleen', 'right kidney', 'left kidney', 'liver', 'stomach', 'aorta', 'pancreas',
    'right lung', 'left lung', 'bladder',
  ),
}  # fmt: skip
_FIRST_VALIDATION_SEED = 1_000_000
_FIRST_TUNE_SEED = 2_000_000
_SPACING = (4.0, 4.0, 4.0)


def phantom_cases(
  *,
  train: int = 24,
  validation: int = 6,
  spacing: Sequence[float] = _SPACING,
  first_seed: int = _FIRST_VALIDATION_SEED,
) -> list[Case]:
  """A synthetic cohort with partial labels.

  Args:
    train: training cases; they take turns over the datasets.
    validation: validation cases; they label all classes of the phantom.
    spacing: (3,) mm of the scans' own grids.
    first_seed: of the validation cases.
  """
  cases = []
  for i in range(train):
    source, names = list(_DATASETS.items())[i % len(_DATASETS)]
    cases.append(_case(source, 'train', i, names, spacing))
  for i in range(validation):
    case = _case('phantom', 'validation', first_seed + i, trunk.CLASSES, spacing)
    cases.append(case)
  return cases


def _case(
  source: str, split: str, seed: int, names: Sequence[str], spacing: Sequence[float]
) -> Case:
  load = functools.partial(_load, seed, tuple(names), tuple(spacing))
  return Case(source, f'{source}_{seed:07d}', split, in_template_order(names), load)


@loader('_load_phantom')
def _load(seed: int, names: tuple[str, ...], spacing: tuple[float, ...]) -> Scan:
  image, codes, voxel = trunk.make_phantom(seed, spacing=spacing)
  canonical = volume.to_canonical(image, np.diag([*voxel, 1.0]))
  return Scan(canonical.array, restrict_table(names)[codes], canonical.geometry)


PHANTOM = Source(
  name='phantom',
  description='Synthetic CT of the trunk in three datasets that each label some organs.',
  licence='Apache-2.0',
  citation='',
  cases=lambda manual_dir: phantom_cases(),
  expected=30,
  classes=in_template_order(trunk.CLASSES),
)

PHANTOM_TUNE = dataclasses.replace(
  PHANTOM,
  name='phantom_tune',
  description='The same training phantoms, and six others held out to make choices on.',
  cases=lambda manual_dir: phantom_cases(first_seed=_FIRST_TUNE_SEED),
)
