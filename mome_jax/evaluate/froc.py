"""Detection of tumours and cysts over the probability threshold: free-response curves.

At each threshold the numbers of `detection`, from the probability of the class alone: before it
competes with other classes, and before rules of post-processing. The curve of lesions found against
false positives per healthy scan is that of free-response analysis (Bunch et al., SPIE 1977), with
false positives counted where there is no lesion at all.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mome_jax.evaluate import lesions
from mome_jax.inference.slabs import Planes

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FIELDS = ('class', 'threshold', 'n_diseased', 'n_healthy', 'sensitivity', 'specificity',
          'lesion_sensitivity', 'false_positives_per_healthy')  # fmt: skip
_LOGITS = np.log(np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS))).astype(np.float32)


class Levels:
  """How many thresholds each voxel passes, for the lesions among some classes of one scan.

  Args:
    names: K class names.
    shape: (D, H, W) of the scan.
  """

  def __init__(self, names: Sequence[str], shape: Sequence[int]):
    self._classes = {name: k for k, name in enumerate(names) if lesions.is_lesion(name)}
    self._levels = {name: np.zeros(shape, np.uint8) for name in self._classes}

  @property
  def names(self) -> tuple[str, ...]:
    """The lesions."""
    return tuple(self._classes)

  def add(self, slab: Planes) -> None:
    """Takes the logits of some planes."""
    for name, levels in self._levels.items():
      levels[slab.planes] = np.searchsorted(_LOGITS, slab.logits(self._classes[name]))

  def of(self, name: str) -> np.ndarray:
    """(D, H, W) uint8 of a class: the number of `THRESHOLDS` that its probability is above."""
    return self._levels[name]


def count(
  levels: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray, name: str
) -> list[dict[str, Any]]:
  """Counts the components of one lesion class in one scan at every threshold.

  Args:
    levels: (D, H, W) of `Levels.of`.
    truth: (D, H, W) bool.
    spacing: (3,) mm.
    name: of the class.

  Returns:
    For each threshold the counts of `lesions.count`, with 'class' and 'threshold'.
  """
  return [
    {'class': name, 'threshold': threshold, **lesions.count(levels > i, truth, spacing, name)}
    for i, threshold in enumerate(THRESHOLDS)
  ]


def summarize(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The numbers of `FIELDS` for each class and threshold of some scans; see `lesions.rates`.

  Args:
    rows: those of `count` for every scan.

  Returns:
    One mapping for each class and threshold; None where there is no scan to tell.
  """
  groups: dict[tuple, list] = {}
  for row in rows:
    groups.setdefault((row['class'], row['threshold']), []).append(row)
  points = []
  for (name, threshold), group in groups.items():
    point = {'class': name, 'threshold': threshold, **lesions.rates(group)}
    unknown = lambda value: isinstance(value, float) and math.isnan(value)
    points.append({field: None if unknown(point[field]) else point[field] for field in FIELDS})
  return points
