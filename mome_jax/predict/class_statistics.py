"""Numbers of a segmented scan: volume, density and components of each class, and its sides."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import volume
from input_pipeline.ct.components import components
from mome_jax.inference.segmentation import Segmentation
from mome_jax.plausibility.judge import Judgement
from mome_jax.predict import plausible_masks
from mome_jax.predict.request import Target


def statistics(
  scan: volume.Volume,
  segmentation: Segmentation,
  targets: Sequence[Target],
  judgement: Judgement | None = None,
) -> list[dict[str, Any]]:
  """A row of the legend for each target.

  Args:
    scan: the CT.
    segmentation: of the targets.
    targets: K.
    judgement: of the masks.

  Returns:
    K dicts: the fields of a target; `volume_ml`, structures inside it included; `mean_hu` and
    `sd_hu` of its voxels, None without any; `present`, whether it has voxels and can be in the
    field of view; `components`, the number of 26-connected ones; and the fields of
    `plausible_masks.verdict_of`.
  """
  rows = []
  for target in targets:
    box = segmentation.boxes[target.name]
    row = {**dataclasses.asdict(target), 'also': list(target.also)}
    row |= {'volume_ml': 0.0, 'present': False, 'mean_hu': None, 'sd_hu': None}
    row['components'] = 0
    if box is not None:
      mask = segmentation.mask(target.name, box)
      row['volume_ml'] = plausible_masks.rounded_ml(int(np.count_nonzero(mask)), scan)
      row['present'] = not plausible_masks.is_absent(judgement, target.name)
      values = scan.array[box][mask]
      row['mean_hu'] = round(float(values.mean(dtype=np.float64)), 1)
      row['sd_hu'] = round(float(values.std(dtype=np.float64)), 1)
      _, row['components'] = components(mask)
    rows.append(row | plausible_masks.verdict_of(judgement, target.name))
  return rows


def is_mirrored(segmentation: Segmentation) -> bool | None:
  """Whether liver lies left of spleen; None unless both were looked for and have voxels."""
  right = []
  for name in ('liver', 'spleen'):
    box = segmentation.boxes[name] if name in segmentation.names else None
    if box is None:
      return None
    columns = segmentation.mask(name, box).sum((1, 2))
    right.append(np.average(np.arange(box[0].start, box[0].stop), weights=columns))
  return bool(right[0] < right[1])
