"""Hand-worked scores, agreement with surface-distance on the whole grid, and the summary table."""

import dataclasses
import json
import math

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from mome_jax.evaluate import bootstrap, metrics


def box(shape, low, high):
  mask = np.zeros(shape, bool)
  mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
  return mask


def blob(seed, shape=(14, 12, 10)):
  """A connected-looking random mask: the larger values of a smoothed noise field."""
  field = np.random.default_rng(seed).normal(size=shape)
  for axis in range(3):
    field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
  return field > np.quantile(field, 0.8)


def test_shifted_cube_by_hand():
  # Two 4x4x4 cubes, one shifted by 2 voxels of 3 mm along x: half of each is shared. The face that
  # sticks out, 16 of 224 mm^2 and so more than 5 %, is 6 mm from the other surface.
  truth = box((12, 12, 12), (2, 2, 2), (6, 6, 6))
  prediction = box((12, 12, 12), (4, 2, 2), (8, 6, 6))
  scores = metrics.score(prediction, truth, (3.0, 1.0, 1.0))
  assert scores.dice == 0.5
  assert scores.hd95_mm == 6.0
  assert scores.nsd < scores.nsd_3mm < 1.0


def test_false_plate_by_hand():
  # The prediction is the true plate and a second, equal one 12 mm away: a surface A is matched from
  # both sides, the other is not, (A + A) / (A + 2 A). More than 5 % of its area is 12 mm off.
  truth = box((8, 8, 12), (0, 0, 2), (8, 8, 4))
  scores = metrics.score(truth | np.roll(truth, 6, 2), truth, (1.0, 1.0, 2.0))
  assert scores.nsd_1mm == scores.nsd == scores.nsd_3mm == pytest.approx(2 / 3)
  assert scores.dice == pytest.approx(2 / 3)
  assert scores.hd95_mm == 12.0


def test_axis_of_the_spacing_matters():
  # One slab one voxel off along z: everything is within 2 mm if z is 2 mm thick, not if it is 4 mm.
  truth = box((10, 10, 10), (0, 0, 3), (10, 10, 5))
  prediction = box((10, 10, 10), (0, 0, 4), (10, 10, 6))
  assert metrics.score(prediction, truth, (1, 1, 2)).nsd == 1.0
  assert metrics.score(prediction, truth, (1, 1, 4)).nsd < 0.7
  assert metrics.score(prediction, truth, (4, 1, 2)).nsd == 1.0
  assert metrics.score(prediction, truth, (1, 1, 2)).hd95_mm == 2.0
  assert metrics.score(prediction, truth, (1, 1, 4)).hd95_mm == 4.0


def test_tolerances_are_one_two_and_three_mm():
  # Thin plates d mm apart: wholly matched from a tolerance of d mm on.
  truth = box((16, 16, 12), (0, 0, 2), (16, 16, 4))
  for distance, expected in ((1, (1, 1, 1)), (2, (None, 1, 1)), (3, (None, None, 1))):
    scores = metrics.score(np.roll(truth, distance, 2), truth, (1.0, 1.0, 1.0))
    for value, want in zip((scores.nsd_1mm, scores.nsd, scores.nsd_3mm), expected, strict=True):
      assert value == 1.0 if want else value < 0.95


def test_empty_masks():
  empty, full = np.zeros((5, 5, 5), bool), box((5, 5, 5), (1, 1, 1), (3, 3, 3))
  assert all(math.isnan(v) for v in dataclasses.astuple(metrics.score(empty, empty, (1, 1, 1))))
  for pair in ((empty, full), (full, empty)):
    assert metrics.score(*pair, (1, 1, 1)) == metrics.Scores(0.0, 0.0, 0.0, 0.0, math.inf)
  # The package agrees as far as it answers: two empty masks have no surface to measure.
  distances = surface_distance.compute_surface_distances(empty, empty, (1, 1, 1))
  assert all(values.size == 0 for values in distances.values())


@pytest.mark.filterwarnings('error::RuntimeWarning')
def test_no_slices_left_counts_as_empty():
  nothing = np.zeros((5, 5, 0), bool)
  assert math.isnan(metrics.score(nothing, nothing, (1, 1, 1)).dice)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_symmetric(seed_a, seed_b):
  a, b = blob(seed_a), blob(seed_b)
  forward, backward = metrics.score(a, b, (0.8, 1.1, 2.5)), metrics.score(b, a, (0.8, 1.1, 2.5))
  np.testing.assert_allclose(dataclasses.astuple(forward), dataclasses.astuple(backward))


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_identical_masks_are_perfect(seed):
  scores = metrics.score(blob(seed), blob(seed), (0.7, 0.9, 3.0))
  assert scores == metrics.Scores(1.0, 1.0, 1.0, 1.0, 0.0)


@given(
  st.integers(0, 10**6),
  st.tuples(*[st.floats(0.4, 5.0)] * 3),
  st.tuples(*[st.integers(0, 6)] * 6),
)
@settings(max_examples=20, deadline=None)
def test_crop_equals_surface_distance_on_the_whole_grid(seed, spacing, padding):
  # Padding of 0 puts the masks at the border of the scan.
  width = np.reshape(padding, (3, 2))
  truth, prediction = np.pad(blob(seed), width), np.pad(blob(seed + 1), width)
  whole = surface_distance.compute_surface_distances(truth, prediction, spacing)
  nsd = [surface_distance.compute_surface_dice_at_tolerance(whole, mm) for mm in (1, 2, 3)]
  hd95 = surface_distance.compute_robust_hausdorff(whole, 95)
  dice = surface_distance.compute_dice_coefficient(truth, prediction)
  scores = metrics.score(prediction, truth, spacing)
  assert dataclasses.astuple(scores) == (dice, *nsd, hd95)


@pytest.mark.parametrize(
  ('prediction', 'truth', 'spacing', 'message'),
  [
    (np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), bool), (1, 1, 1), 'prediction.*uint8'),
    (np.zeros((3, 3, 3), bool), np.zeros((3, 3), bool), (1, 1, 1), 'truth: 2-D'),
    (np.zeros((3, 3, 3), bool), np.zeros((3, 3, 4), bool), (1, 1, 1), r'\(3, 3, 4\).*own grid'),
    (np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3), bool), (1, 0, 1), 'spacing.*positive'),
    (np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3), bool), (1, 1), 'spacing.*three'),
  ],
)
def test_bad_input_is_named(prediction, truth, spacing, message):
  with pytest.raises(ValueError, match=message):
    metrics.score(prediction, truth, spacing)


def test_restrict_keeps_the_slices_whose_centre_is_inside():
  mask = np.arange(10)[None, None] * np.ones((2, 2, 1), int)  # value = slice number
  kept = lambda low, high: metrics.restrict(mask, (1, 1, 2.5), (low, high))[0, 0].tolist()
  assert kept(-math.inf, math.inf) == list(range(10))
  assert kept(5.0, 10.0) == [2, 3, 4]  # Slices at 5, 7.5 and 10 mm; both ends belong to it.
  assert kept(5.1, 9.9) == [3]
  assert kept(-100.0, 0.0) == [0]
  assert kept(23.0, 500.0) == []
  assert kept(-10.0, -5.0) == []
  third = np.float32(3 * 1.1)  # float32 rounding does not lose the last slice
  assert metrics.restrict(mask, (1, 1, 1.1), (0, third)).shape[2] == 4


def row(case, name, dice, nsd, hd95):
  values = {'dice': dice, 'nsd_1mm': nsd / 2, 'nsd': nsd, 'nsd_3mm': nsd, 'hd95_mm': hd95}
  return {'case': case, 'class': name, **values}


NAN = math.nan
ROWS = [
  row('a', 'liver', 0.9, 0.8, 4.0),
  row('b', 'liver', 0.0, 0.0, math.inf),  # missed
  row('c', 'liver', 0.6, 0.4, 8.0),
  row('a', 'liver tumor', NAN, NAN, NAN),  # healthy, and nothing found
  row('b', 'liver tumor', 0.3, 0.2, 10.0),
  row('c', 'liver tumor', 0.7, 0.6, 2.0),
]


def test_summary_by_hand():
  summary = metrics.summarize(ROWS)
  liver, tumor = summary['classes']['liver'], summary['classes']['liver tumor']
  assert list(summary['classes']) == ['liver', 'liver tumor']
  assert liver['dice'] == pytest.approx(0.5) and tumor['dice'] == pytest.approx(0.5)
  assert liver['nsd'] == pytest.approx(0.4) and tumor['nsd'] == pytest.approx(0.4)
  assert liver['nsd_1mm'] == pytest.approx(0.2) and liver['nsd_3mm'] == pytest.approx(0.4)
  assert liver['hd95_mm'] == 6.0 and tumor['hd95_mm'] == 6.0
  assert (liver['n'], liver['n_both_empty'], liver['hd95_infinite']) == (3, 0, 1)
  assert (tumor['n'], tumor['n_both_empty'], tumor['hd95_infinite']) == (2, 1, 0)
  assert summary['mean_dice'] == pytest.approx(0.5)
  assert summary['mean_nsd'] == pytest.approx(0.4)
  assert liver['dice_interval'] == list(bootstrap.bootstrap_interval([0.9, 0.0, 0.6]))


def test_mean_is_over_classes_not_over_pairs():
  rows = [row(str(i), 'spleen', 1.0, 1.0, 0.0) for i in range(9)] + [row('0', 'colon', 0, 0, 9.0)]
  assert metrics.summarize(rows)['mean_dice'] == 0.5


def test_macro_interval_resamples_whole_cases():
  # Case a has Dice 1 in both classes, case b 0: a resample's macro mean is 0, 1/2 or 1. Resampling
  # pairs instead would give quarters, and their 30 % and 70 % quantiles are not 1/2.
  rows = [row(c, k, float(c == 'a'), 0.5, 1.0) for c in 'ab' for k in ('liver', 'spleen')]
  table = np.array([[1.0, 1.0], [0.0, 0.0]])
  assert metrics.summarize(rows)['mean_dice_interval'] == [0.0, 1.0]
  assert bootstrap.bootstrap_macro(table, level=0.4) == (0.5, 0.5)


def test_macro_interval_keeps_the_mean_of_a_class_without_a_case_in_the_resample():
  # Only case a has the colon, with Dice 0. Resamples: aa -> (1 + 0) / 2; ab -> the same; bb -> no
  # colon, whose mean is 0. Leaving it out of that resample would give 1, the mean of another thing.
  rows = [row('a', 'liver', 1.0, 1.0, 0.0), row('b', 'liver', 1.0, 1.0, 0.0)]
  rows.append(row('a', 'colon', 0.0, 0.0, 3.0))
  assert metrics.summarize(rows)['mean_dice_interval'] == [0.5, 0.5]
  # With a colon of 0 and of 1 in two of three cases, its mean is 1/2 in ccc and 0, 1/2 or 1 else.
  table = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, NAN]])
  assert bootstrap.bootstrap_macro(table, level=0.2) == (0.75, 0.75)
  assert bootstrap.bootstrap_macro(table) == (0.5, 1.0)
  # A class that no case has is in no mean.
  assert bootstrap.bootstrap_macro(np.hstack([table, np.full((3, 1), NAN)])) == (0.5, 1.0)


def test_summary_is_json_safe():
  rows = [*ROWS, row('a', 'colon', NAN, NAN, NAN), row('b', 'rectum', 0.0, 0.0, math.inf)]
  summary = metrics.summarize(rows)
  assert json.loads(json.dumps(summary, allow_nan=False)) == summary
  colon, rectum = summary['classes']['colon'], summary['classes']['rectum']
  assert colon['dice'] is None and colon['dice_interval'] == [None, None]
  assert (colon['n'], colon['n_both_empty']) == (0, 1)
  assert rectum['hd95_mm'] is None and rectum['hd95_infinite'] == 1
  assert summary['mean_dice'] == pytest.approx((0.5 + 0.5 + 0.0) / 3)  # without the colon
  empty = metrics.summarize([])
  assert empty['mean_dice'] is None and empty['classes'] == {}


def test_repeated_pair_is_an_error():
  with pytest.raises(ValueError, match=r"\('a', 'liver'\)"):
    metrics.summarize([*ROWS, ROWS[0]])
