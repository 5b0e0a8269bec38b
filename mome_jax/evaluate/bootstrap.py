"""Bootstrap intervals over cases: percentile method, seeded. One case alone has none.

Cases are scans. Several of one patient are resampled as if they were of several, so that intervals
are too narrow there.
"""

import math
from collections.abc import Iterable

import numpy as np


def bootstrap_interval(
  values: Iterable[float], *, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean over cases.

  Args:
    values: one finite number per case; NaN is left out.
    seed: seed of the resampling.
    samples: number of resamples.
    level: coverage of the interval, in (0, 1).

  Returns:
    (low, high); (NaN, NaN) with fewer than two cases.

  Raises:
    ValueError: if a value is infinite.
  """
  column = np.asarray(list(values), np.float64)[:, None]
  return bootstrap_macro(column, seed, samples, level)


def bootstrap_macro(
  table: np.ndarray, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
  """Interval of the mean over classes of the mean over cases, resampling cases.

  Every resample is a mean over the same classes. One of which it draws no case has its mean over
  all cases there: without it the resample would estimate another mean than the table's. So a class
  of few cases makes the interval too narrow, and one of a single case adds nothing to its width.
  Cases without any score are in no resample.

  Args:
    table: (cases, classes) float64; NaN where a class has no score.
    seed: seed of the resampling.
    samples: number of resamples.
    level: coverage of the interval.

  Returns:
    (low, high); (NaN, NaN) with fewer than two cases that have a score.

  Raises:
    ValueError: if a value is infinite.
  """
  if np.isinf(table).any():
    raise ValueError('infinite value; count infinite distances instead of averaging them')
  valid = ~np.isnan(table)
  return _percentiles(np.where(valid, table, 0.0), valid, seed, samples, level)


def bootstrap_ratio(
  pairs: Iterable[tuple[float, float]],
  *,
  seed: int = 0,
  samples: int = 2000,
  level: float = 0.95,
) -> tuple[float, float]:
  """Interval of sum(part) / sum(whole) over cases, from one (part, whole) a case.

  (NaN, NaN) with fewer than two cases that have a whole.
  """
  columns = np.asarray(list(pairs), np.float64).reshape(-1, 2)
  return _percentiles(columns[:, :1], columns[:, 1:], seed, samples, level)


def _percentiles(
  values: np.ndarray, weights: np.ndarray, seed: int, samples: int, level: float
) -> tuple[float, float]:
  """Of the mean over columns of sum(values) / sum(weights), rows being resampled."""
  kept = weights.any(axis=1)
  values, weights, n_cases = values[kept], weights[kept], int(kept.sum())
  if n_cases < 2:  # every resample would be the same
    return math.nan, math.nan
  draws = np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), samples)
  totals, counts = draws @ values, draws @ weights  # (samples, classes)
  scored = weights.any(axis=0)
  totals, counts = totals[:, scored], counts[:, scored]
  means = np.tile(values.sum(axis=0)[scored] / weights.sum(axis=0)[scored], (samples, 1))
  np.divide(totals, counts, out=means, where=counts > 0)
  low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
