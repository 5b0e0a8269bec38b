"""Bootstrap intervals against normal theory and by hand."""

import math

import numpy as np
import pytest

from mome_jax.evaluate.bootstrap import bootstrap_interval, bootstrap_macro, bootstrap_ratio


def test_bootstrap_interval():
  values = np.random.default_rng(3).normal(0.8, 0.1, 40)
  low, high = bootstrap_interval(values)
  assert low < values.mean() < high
  # Normal theory: mean +- 1.96 standard errors.
  error = 1.96 * values.std() / math.sqrt(40)
  np.testing.assert_allclose((low, high), (values.mean() - error, values.mean() + error), atol=3e-3)
  assert (low, high) == bootstrap_interval(values)
  assert (low, high) == bootstrap_interval([*values[:10], math.nan, *values[10:]])
  narrow = bootstrap_interval(values, level=0.5)
  assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_of_few_values():
  # Of one value every resample is the same: that says nothing about others.
  assert all(math.isnan(v) for v in bootstrap_interval([0.25]))
  assert all(math.isnan(v) for v in bootstrap_interval([0.25, math.nan]))
  assert all(math.isnan(v) for v in bootstrap_interval([]))
  assert all(math.isnan(v) for v in bootstrap_interval([math.nan]))
  # Two values: a resample's mean is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4.
  assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
  assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)
  with pytest.raises(ValueError, match='infinite'):
    bootstrap_interval([1.0, math.inf])


def test_interval_of_a_ratio_resamples_parts_and_wholes_together():
  # Cases 1 of 1 and 0 of 3: a resample gives 1, 1/4 or 0 with chance 1/4, 1/2, 1/4.
  assert bootstrap_ratio([(1, 1), (0, 3)]) == (0.0, 1.0)
  assert bootstrap_ratio([(1, 1), (0, 3)], level=0.4) == (0.25, 0.25)
  assert all(math.isnan(v) for v in bootstrap_ratio([]))
  assert all(math.isnan(v) for v in bootstrap_ratio([(1, 2), (0, 0)]))
  with pytest.raises(ValueError, match='infinite'):
    bootstrap_macro(np.array([[math.inf]]))


def test_a_case_without_a_score_is_in_no_resample():
  table = np.random.default_rng(4).uniform(size=(9, 2))
  among = np.insert(table, [0, 4, 9], math.nan, axis=0)
  assert bootstrap_macro(among) == bootstrap_macro(table)
  pairs = [(1, 2), (3, 3), (0, 1)]
  assert bootstrap_ratio([(0, 0), *pairs, (0, 0)]) == bootstrap_ratio(pairs)


def test_scans_of_one_patient_are_drawn_together():
  # Patient p has 0 and 0, q 1 and 1: a resample's mean is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4.
  # Drawn scan by scan it would also be 1/4 and 3/4.
  values, whose = [0.0, 1.0, 0.0, 1.0], ['p', 'q', 'p', 'q']
  assert bootstrap_interval(values, whose, level=0.4) == (0.5, 0.5)
  assert bootstrap_interval(values, whose) == bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
  pairs = [(value, 1) for value in values]
  assert bootstrap_ratio(pairs, whose) == bootstrap_interval(values, whose)
  table = np.array([[0.0, math.nan], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
  assert bootstrap_macro(table, whose) == (0.0, 1.0)
  assert all(math.isnan(v) for v in bootstrap_interval(values, ['p'] * 4))
  assert bootstrap_interval(values, 'abcd') == bootstrap_interval(values)
