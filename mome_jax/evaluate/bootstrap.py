"""Bootstrap intervals over patients: percentile method, seeded. One patient alone has none.

Cases are scans. Several of one patient are drawn together, where `patients` tells them; as if they
were of several patients, intervals would be too narrow.
"""

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

_SEED, _SAMPLES = 0, 2000  # of the resampling


def bootstrap_interval(
  values: Iterable[float],
  patients: Sequence[Hashable] | None = None,
  *,
  level: float = 0.95,
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean over cases.

  Args:
    values: one finite number per case; NaN is left out.
    patients: whose each case is; None: each is of another one.
    level: coverage of the interval, in (0, 1).

  Returns:
    (low, high); (NaN, NaN) with fewer than two patients.

  Raises:
    ValueError: if a value is infinite.
  """
  column = np.asarray(list(values), np.float64)[:, None]
  return bootstrap_macro(column, patients, level=level)


def bootstrap_macro(
  table: np.ndarray,
  patients: Sequence[Hashable] | None = None,
  *,
  level: float = 0.95,
) -> tuple[float, float]:
  """Interval of the mean over classes of the mean over cases, resampling patients.

  Every resample is a mean over the same classes. One of which it draws no case has its mean over
  all cases there: without it the resample would estimate another mean than the table's. So a class
  of few patients makes the interval too narrow, and one of a single patient adds nothing to its
  width. Cases without any score are in no resample.

  Args:
    table: (cases, classes) float64; NaN where a class has no score.
    patients: whose each case is; None: each is of another one.
    level: coverage of the interval.

  Returns:
    (low, high); (NaN, NaN) with fewer than two patients who have a score.

  Raises:
    ValueError: if a value is infinite.
  """
  if np.isinf(table).any():
    raise ValueError('infinite value; count infinite distances instead of averaging them')
  valid = ~np.isnan(table)
  values, weights = joined(np.where(valid, table, 0.0), patients), joined(valid, patients)
  return _percentiles(values, weights, level)


def bootstrap_ratio(
  pairs: Iterable[tuple[float, float]],
  patients: Sequence[Hashable] | None = None,
  *,
  level: float = 0.95,
) -> tuple[float, float]:
  """Interval of sum(part) / sum(whole) over cases, from one (part, whole) a case.

  (NaN, NaN) with fewer than two patients who have a whole.
  """
  columns = joined(np.asarray(list(pairs), np.float64).reshape(-1, 2), patients)
  return _percentiles(columns[:, :1], columns[:, 1:], level)


def joined(table: np.ndarray, patients: Sequence[Hashable] | None) -> np.ndarray:
  """The rows (cases, columns) of each patient summed: (patients, columns), in order of appearance.

  None: each case is of another patient.
  """
  if patients is None:
    return table
  numbers = {who: number for number, who in enumerate(dict.fromkeys(patients))}
  sums = np.zeros((len(numbers), table.shape[1]))
  np.add.at(sums, [numbers[who] for who in patients], table)
  return sums


def _percentiles(values: np.ndarray, weights: np.ndarray, level: float) -> tuple[float, float]:
  """Of the mean over columns of sum(values) / sum(weights), rows being resampled."""
  kept = weights.any(axis=1)
  values, weights, n = values[kept], weights[kept], int(kept.sum())
  if n < 2:  # every resample would be the same
    return math.nan, math.nan
  draws = np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), _SAMPLES)
  totals, counts = draws @ values, draws @ weights  # (samples, classes)
  scored = weights.any(axis=0)
  totals, counts = totals[:, scored], counts[:, scored]
  means = np.tile(values.sum(axis=0)[scored] / weights.sum(axis=0)[scored], (_SAMPLES, 1))
  np.divide(totals, counts, out=means, where=counts > 0)
  low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
