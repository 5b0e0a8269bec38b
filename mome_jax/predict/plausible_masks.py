"""Judges the masks of a scan by the records that come with the model, and tells of it."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import volume
from mome_jax.inference.segmentation import Segmentation
from mome_jax.plausibility.judge import Judgement, Verdict, choose, judge
from mome_jax.plausibility.measures import Scene
from mome_jax.plausibility.record import Record

_UNKNOWN = Verdict()


def judge_masks(
  scan: volume.Volume, segmentation: Segmentation, records: Sequence[Record]
) -> Judgement | None:
  """Judges the masks of all classes that the model was trained on.

  Args:
    scan: the CT.
    segmentation: of it. Whatever was asked for, all trained classes compete in it.
    records: of the model.

  Returns:
    None without a record, or where nothing but free text was asked for.
  """
  judged = frozenset[str]().union(
    *({*record.classes, *record.absent, *record.shown} for record in records)
  )
  names = [name for name in segmentation.names if name in judged]
  if not names:
    return None
  scene = Scene(scan.array, scan.spacing, records[0].grid)
  coarse = dataclasses.replace(
    segmentation,
    winner=scene.sample(segmentation.winner),
    over=scene.sample(segmentation.over),
    free={},
  )
  measured = {name: scene.look(coarse.mask(name)) for name in names}
  looks = {name: look for name, look in measured.items() if look is not None}
  record = choose(looks, scene, records)
  voxel_ml = float(np.prod(record.grid)) / 1000
  others = [other for other in records if other is not record]
  classes = dict(itertools.chain(*(one.classes.items() for one in (*reversed(others), record))))
  few = set(record.shown) - record.classes.keys()  # what they may look like is not known
  least = {n: known.values['volume_ml'].low for n, known in classes.items() if n not in few}
  least |= dict.fromkeys(record.absent, math.inf)
  specks = [
    name
    for name in names
    if name not in looks
    and segmentation.boxes[name] is not None
    and least.get(name, 0) > 4 * voxel_ml
  ]
  return judge(looks, scene, record, specks, others)


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
