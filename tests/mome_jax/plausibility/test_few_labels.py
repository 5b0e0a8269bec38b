"""What few labels, and the part of an organ that a scan shows, say of a mask."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from mome_jax.plausibility import learn
from mome_jax.plausibility.judge import FOREIGN, judge
from mome_jax.plausibility.record import Range, read, write
from tests.mome_jax.plausibility.test_judge import CLASSES, Person, training


# ---------------------------------------------------------------------------- few labels
def test_the_range_of_a_few_is_a_prediction_interval():
  """By SciPy's Student distribution, on the scale of the measure."""
  rng = np.random.default_rng(0)
  for name, scale, back in (
    ('mean_hu', lambda x: x, lambda x: x),
    ('volume_ml', np.log, np.exp),
    ('air_0_10_mm', np.sqrt, np.square),
  ):
    values = np.exp(rng.normal(2.0, 0.8, 5)) / (100 if name.startswith('air') else 1)
    at = scale(values)
    spread = max(at.std(ddof=1), {'mean_hu': 5, 'volume_ml': 0.1, 'air_0_10_mm': 0.03}[name])
    low, high = scipy.stats.t.interval(
      0.96, 4, loc=at.mean(), scale=spread * math.sqrt(1 + 1 / len(at))
    )
    known = Range.of_few(name, values)
    low = max(low, 0) if name.startswith('air') else low
    expected = (back(low), back(at.mean()), back(high))
    np.testing.assert_allclose((known.low, known.median, known.high), expected, rtol=1e-5)


@pytest.mark.parametrize('count', [2, 3, 9, 10])
def test_from_three_labels_on_it_is_known_what_is_nothing_of_the_kind(count, tmp_path):
  record = learn.learn(training(count), CLASSES, (4, 4, 3))
  assert set(record.few) == (set(CLASSES) if 3 <= count < 10 else set())
  assert set(record.classes) == (set(CLASSES) if count >= 10 else set())
  assert set(record.of(['heart']).few) == (record.few.keys() & {'heart'})
  smallest = record.smallest_ml('heart')
  assert smallest is None if count == 2 else 0 < smallest < 500
  write(tmp_path, [record])
  assert read(tmp_path) == (record,)


def test_few_labels_tell_masks_in_a_foreign_scan_by_what_is_around_them():
  record = dataclasses.replace(learn.learn(training(5), CLASSES, (4, 4, 3)), tolerance=3.5)
  giant, usual = Person(1000, scan=12.0), Person(1000)
  outside = {'outside_0_10_mm': 0.9, 'soft_0_10_mm': 0.0}
  verdict = lambda person, **changes: judge(
    {'heart': person.look('heart', **changes)}, person, record
  ).verdicts['heart']
  odd = verdict(giant, **outside)
  assert (odd.plausible, odd.absent, odd.reasons[0]) == (False, True, FOREIGN)
  assert 'outside' in odd.reasons[1]
  # A large, dense organ somewhere else may be a sick one.
  sick = verdict(giant, volume_ml=5000.0, mean_hu=500.0, right=2.0)
  assert (sick.plausible, sick.absent) == (False, False)
  assert verdict(usual, **outside).plausible is None  # a scan as others


def test_a_mask_that_is_unlike_the_few_may_be_like_the_many_of_another_region():
  many = learn.learn(training(), CLASSES, (4, 4, 3))
  chest = training(5, heart={'air_0_10_mm': 0.9, 'soft_0_10_mm': 0.0})
  few = dataclasses.replace(learn.learn(chest, CLASSES, (4, 4, 3)), tolerance=3.5)
  giant = Person(1000, scan=12.0)
  verdict = lambda look, *others: judge({'heart': look}, giant, few, (), others).verdicts['heart']
  usual, odd = giant.look('heart'), giant.look('heart', bone_0_10_mm=0.9)
  assert verdict(usual).absent
  assert not verdict(usual, many).absent
  assert verdict(odd, many).absent  # like neither


def test_a_part_of_an_organ_is_told_from_what_is_nothing_of_the_kind():
  """Of a part neither size nor place in the body are known, but its density, and what is beside."""
  record = learn.learn(training(), CLASSES, (4, 4, 3))
  giant = Person(1000, scan=12.0)
  verdict = lambda **changes: judge(
    {'heart': giant.look('heart', **changes)}, giant, record
  ).verdicts['heart']
  for odd in ({'volume_ml': 2000.0}, {'right': 3.0}, {'fat_10_30_mm': 1.0}):
    whole, part = verdict(**odd), verdict(**odd, cut=True)
    assert (whole.absent, whole.alien, part.absent, part.alien) == (True, True, True, False), odd
  for odd in ({'mean_hu': 400.0}, {'fat_0_10_mm': 1.0}):
    assert verdict(**odd, cut=True).alien, odd
  right = verdict(cut=True)
  assert (right.absent, right.alien) == (False, False)
