"""What a model sees where there is nothing: volumes of masks in scans that do not hold the class.

Dice cannot tell: it is 0 for one stray voxel as for a liter. Of a class that a scan's field of view
cannot show (`sources.Case.absent`) only this is measured; a class that was labelled and has no
voxel is measured by both.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

FIELDS = ('absent', 'false_positive_ml')
LIMIT_ML = 1.0  # what is counted as a false mask, not as stray voxels


def measure(
  prediction: np.ndarray,
  truth: np.ndarray,
  spacing: Sequence[float] | np.ndarray,
  *,
  absent: bool,
) -> dict[str, Any]:
  """The fields of one class in one scan.

  Args:
    prediction: (D, H, W) bool.
    truth: (D, H, W) bool, on the same grid.
    spacing: (3,) mm.
    absent: whether the scan's field of view cannot show the class.

  Returns:
    `absent`, and `false_positive_ml`: volume of the prediction where the truth has no voxel, else
    None.
  """
  if truth.any():
    return {'absent': absent, 'false_positive_ml': None}
  ml = np.count_nonzero(prediction) * float(np.prod(spacing)) / 1000
  return {'absent': absent, 'false_positive_ml': ml}


def parse(row: Mapping[str, str]) -> dict[str, Any]:
  """The fields of a row of `cases.csv`; of older files False and None."""
  ml = row.get('false_positive_ml')
  return {
    'absent': (row.get('absent') or '').casefold() == 'true',  # spreadsheets write TRUE
    'false_positive_ml': float(ml) if ml else None,
  }


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Numbers of one class over the scans that do not hold it; {} where every scan holds it.

  Args:
    rows: with the keys of `FIELDS`; others are left out.

  Returns:
    `n` scans, `n_absent` of them whose field of view cannot show the class, `n_above` with more
    than `LIMIT_ML`, `mean_ml` and `max_ml`.
  """
  empty = [row for row in rows if row.get('false_positive_ml') is not None]
  if not empty:
    return {}
  volumes = [float(row['false_positive_ml']) for row in empty]
  return {
    'n': len(empty),
    'n_absent': sum(bool(row.get('absent')) for row in empty),
    'n_above': sum(ml > LIMIT_ML for ml in volumes),
    'mean_ml': sum(volumes) / len(volumes),
    'max_ml': max(volumes),
  }
