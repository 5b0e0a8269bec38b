"""Judges the masks of a scan by the record that comes with the model, and tells of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import volume
from mome_jax.inference.segmentation import Segmentation
from mome_jax.plausibility.judge import Judgement, Verdict, judge
from mome_jax.plausibility.measures import Scene
from mome_jax.plausibility.record import Record

_UNKNOWN = Verdict()


def judge_masks(
  scan: volume.Volume, segmentation: Segmentation, record: Record | None
) -> Judgement | None:
  """Judges the masks of all classes that the model was trained on.

  Args:
    scan: the CT.
    segmentation: of it. Whatever was asked for, all trained classes compete in it.
    record: of the model.

  Returns:
    None without a record, or where nothing but free text was asked for.
  """
  known = [name for name in segmentation.names if record is not None and name in record.classes]
  if record is None or not known:
    return None
  scene = Scene(scan.array, scan.spacing, record.grid)
  coarse = dataclasses.replace(
    segmentation,
    winner=scene.sample(segmentation.winner),
    over=scene.sample(segmentation.over),
    free={},
  )
  looks = {name: scene.look(coarse.mask(name)) for name in known}
  voxel_ml = float(np.prod(record.grid)) / 1000
  specks = [
    name
    for name in known
    if looks[name] is None
    and segmentation.boxes[name] is not None
    and record.classes[name].values['volume_ml'].low > 4 * voxel_ml
  ]
  seen = {name: look for name, look in looks.items() if look is not None}
  return judge(seen, scene, record, specks)


def verdict_of(judgement: Judgement | None, name: str) -> dict[str, Any]:
  """Fields of a legend's row: `cut`, `plausible` and `reasons`; None and empty where not known."""
  verdict = judgement.verdicts.get(name, _UNKNOWN) if judgement is not None else _UNKNOWN
  return {
    'cut': verdict.cut,
    'plausible': verdict.plausible,
    'reasons': list(verdict.reasons),
  }


def is_absent(judgement: Judgement | None, name: str) -> bool:
  """Whether the mask of a class counts as none; see `judge.Verdict`."""
  return judgement is not None and judgement.verdicts.get(name, _UNKNOWN).absent


def implausible(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Names of the masks that are not plausible, from the rows of a legend of any version."""
  return [row['name'] for row in rows if row.get('plausible') is False]


def notes(path: str, judgement: Judgement | None, names: Sequence[str]) -> list[str]:
  """What the user should know of the masks that were asked for.

  Args:
    path: of the scan.
    judgement: of it.
    names: of the masks.
  """
  if judgement is None:
    return []
  doubtful = {
    name: judgement.verdicts[name].reasons[0]
    for name in names
    if name in judgement.verdicts and judgement.verdicts[name].plausible is False
  }
  if judgement.foreign:
    return [
      f'{path}: DOES NOT LOOK LIKE THE SCANS THE MODEL WAS TRAINED ON '
      f'({"; ".join(judgement.reasons)}): do not trust its masks'
    ]
  return [f'{path}: {name} is implausible: {reason}' for name, reason in doubtful.items()]
