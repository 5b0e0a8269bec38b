"""Judges the masks of a scan by the records that come with the model, and tells of it."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import volume
from mome_jax.inference import postprocess
from mome_jax.inference.segmentation import Segmentation
from mome_jax.plausibility.judge import Judgement, Verdict, choose, judge
from mome_jax.plausibility.measures import Scene
from mome_jax.plausibility.record import Record

_UNKNOWN = Verdict()
_SMALL = 0.5  # of the smallest volume of training


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


def judge_and_clean(
  scan: volume.Volume,
  segmentation: Segmentation,
  records: Sequence[Record],
  *,
  keep_absent: bool,
) -> tuple[Segmentation, Judgement | None]:
  """Judges masks as `judge_masks`, and removes small ones that count as none.

  Small is less than half of what nearly all training labels of the class have. A larger one may be
  the organ of a patient whom the records do not know, a child for example: it stays, and is told.
  So does what may be the part of an organ that the scan cuts; see `judge.Verdict`.

  Args:
    scan: the CT.
    segmentation: of it; stays as it is.
    records: of the model.
    keep_absent: whether nothing is removed.

  Returns:
    The masks that are left, and the judgement of all.
  """
  judgement = judge_masks(scan, segmentation, records)
  if judgement is None or keep_absent:
    return segmentation, judgement
  gone = {}
  for name, verdict in judgement.verdicts.items():
    box = segmentation.boxes[name]
    known = [ml for record in records if (ml := record.smallest_ml(name)) is not None]
    if verdict.alien and box is not None and known:
      size = rounded_ml(int(np.count_nonzero(segmentation.mask(name, box))), scan)
      if size < _SMALL * min(known):
        gone[name] = dataclasses.replace(verdict, plausible=None, cut=None, removed_ml=size)
  left = dataclasses.replace(judgement, verdicts={**judgement.verdicts, **gone})
  return postprocess.without(segmentation, gone), left


def rounded_ml(voxels: int, scan: volume.Volume) -> float:
  """The volume of some voxels of a scan, ml; 0 is without a voxel."""
  size = voxels * scan.voxel_ml
  return round(size, 3) or float(f'{size:.1g}')


def verdict_of(judgement: Judgement | None, name: str) -> dict[str, Any]:
  """Fields of a legend's row: `cut`, `plausible`, `reasons` and `removed_ml`.

  None and empty where nothing is known. Of a mask that is removed the reasons are why.
  """
  verdict = _verdict(judgement, name)
  return {
    'cut': verdict.cut,
    'plausible': verdict.plausible,
    'reasons': list(verdict.reasons),
    'removed_ml': verdict.removed_ml,
  }


def is_absent(judgement: Judgement | None, name: str) -> bool:
  """Whether the mask of a class counts as none; see `judge.Verdict`."""
  return _verdict(judgement, name).absent


def _verdict(judgement: Judgement | None, name: str) -> Verdict:
  return _UNKNOWN if judgement is None else judgement.verdicts.get(name, _UNKNOWN)


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
  asked = {name: judgement.verdicts.get(name, _UNKNOWN) for name in names}
  if judgement.foreign:
    told = [
      f'{path}: DOES NOT LOOK LIKE THE SCANS THE MODEL WAS TRAINED ON '
      f'({"; ".join(judgement.reasons)}): do not trust its masks'
    ]
  else:
    told = [
      f'{path}: {name} is implausible: {verdict.reasons[0]}'
      for name, verdict in asked.items()
      if verdict.plausible is False
    ]
  gone = [
    f'{name} ({one.removed_ml:.2g} ml{"" if judgement.foreign else f"; {one.reasons[0]}"})'
    for name, one in asked.items()
    if one.removed_ml
  ]
  if gone:
    told.append(f'{path}: removed as not there: {", ".join(gone)}; --keep-absent keeps such masks')
  return told
