"""The rules of a plan, against values worked out by hand from nnU-Net's description."""

import dataclasses
import math

import numpy as np
import pytest
from cohorts import case, cohort
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.anatomy import TEMPLATE
from mome_jax.plan import rules
from mome_jax.plan.rules import Room

ABDOMEN = cohort([case((1.5, 1.5, 2.0), (256, 200, 220))])


def test_the_grid_is_the_median_spacing():
  scans = [case((x, x, 2.5), (128, 128, 100)) for x in (1.0, 2.0, 9.0)]
  assert rules.native_spacing(cohort(scans))[0] == (2.0, 2.0, 2.5)


def test_thick_slices_take_the_tenth_percentile_and_pool_with_the_others():
  # Percentile 10 of 4, 5, .., 5: 4.9 between the first two of eleven; 0.7 x 0.7 x 4.9 is 7 : 1.
  # The same voxel volume at 2 : 1 has the edge (0.7 * 0.7 * 4.9 / 2) ** (1 / 3) = 1.063.
  scans = [case((0.7, 0.7, z), (512, 512, 80)) for z in (4.0, *[5.0] * 10)]
  z = np.percentile([4.0, *[5.0] * 10], 10)
  spacing, why = rules.native_spacing(cohort(scans))
  edge = (0.7 * 0.7 * z / 2) ** (1 / 3)
  assert spacing == tuple(float(f'{mm:.2g}') for mm in (edge, edge, 2 * edge))
  assert '10th percentile' in why and '0.7 x 0.7 x' in why


def test_thick_slices_of_a_scan_of_few_fine_voxels_are_the_median():
  # nnU-Net: the coarse axis must also have a third of the voxels; 30 * 3 > 80.
  scans = [case((1.0, 1.0, z), (80, 80, 30)) for z in (3.5, 4.0, 4.5)]
  _, why = rules.native_spacing(cohort(scans))
  assert 'percentile' not in why and '1 x 1 x 4' in why


@given(st.lists(st.floats(0.3, 10), min_size=3, max_size=3))
def test_axes_come_together_at_the_same_voxel_volume(mm):
  spacing = np.array(mm)
  within = rules._within(spacing, 2.0)
  assert within.max() <= 2.0001 * within.min()
  if spacing.max() > 2 * spacing.min():
    assert within.prod() == pytest.approx(spacing.prod(), rel=1e-6)
  order = np.argsort(spacing)
  assert (np.diff(within[order]) >= -1e-9).all()


@given(
  voxels=st.integers(32**3, 200**3),
  mm=st.tuples(*[st.floats(0.5, 6)] * 3),
  shape=st.tuples(*[st.integers(8, 600)] * 3),
  stride=st.sampled_from((8, 16, 32)),
)
def test_a_patch_is_level_holds_the_scan_at_most_and_fits(voxels, mm, shape, stride):
  scans = cohort([case(mm, shape)])
  patch, at_cap = rules.patch_of(scans, mm, voxels, stride)
  cap = [math.ceil(n / stride - 1e-6) * stride for n in shape]
  least = [min(c, rules.LEAST_EDGE * stride) for c in cap]
  assert all(n % stride == 0 for n in patch)
  assert all(low <= n <= high for low, n, high in zip(least, patch, cap, strict=True))
  assert math.prod(patch) <= max(voxels, math.prod(least))
  assert at_cap == (list(patch) == cap)
  # Nothing that could still grow is much shorter than the others: a stride more would not fit.
  free = [i for i in range(3) if patch[i] < cap[i]]
  if free:
    shortest = min(free, key=lambda i: patch[i] * mm[i])
    grown = math.prod(patch) // patch[shortest] * (patch[shortest] + stride)
    assert grown > voxels


def test_a_patch_is_a_cube_in_mm():
  # 2 : 1 in mm, so 1 : 2 in voxels: 112 x 112 x 56 is 702,464 voxels of at most 750,000.
  scans = cohort([case((1.0, 1.0, 2.0), (400, 400, 300))])
  assert rules.patch_of(scans, (1.0, 1.0, 2.0), 750_000, 8) == ((112, 112, 56), False)


def test_memory_goes_to_two_patches_and_what_is_left_to_more():
  small = cohort([case((4.0, 4.0, 4.0), (32, 32, 32))] * 200)
  layout = rules.layout(small, Room(5.5 * 32**3, 1, by_time=False), stride=8)
  assert layout.patch == (32, 32, 32) and layout.batch == 5 and layout.at_cap


def test_a_step_sees_a_twentieth_of_the_cohort():
  few = cohort([case((4.0, 4.0, 4.0), (32, 32, 32))] * 60)
  layout = rules.layout(few, Room(1000 * 32**3, 1, by_time=False), stride=8)
  assert layout.batch == 3  # 60 / 20
  assert '5 % of the cohort' in layout.why_batch


def test_each_device_has_a_patch():
  layout = rules.layout(ABDOMEN, Room(96**3, 4, by_time=False), stride=8)
  assert layout.batch == 4 and layout.voxels <= 96**3


def test_time_buys_steps_of_one_patch():
  layout = rules.layout(ABDOMEN, Room(48**3, 1, by_time=True), stride=8)
  assert layout.batch == 1 and layout.voxels <= 48**3


def test_the_grid_is_coarsened_until_a_patch_sees_a_twentieth():
  room = Room(48**3, 1, by_time=True)
  layout = rules.layout(ABDOMEN, room, stride=8)
  assert layout.spacing[0] > 1.5
  assert rules.covered(ABDOMEN, layout.spacing, layout.patch) == pytest.approx(0.05, rel=0.15)
  # 384 * 300 * 440 mm; a patch at the scan's own spacing would see 110,592 voxels of 4.5 mm^3.
  assert 'until a patch sees 5 %' in layout.why_spacing


def test_the_smallest_class_keeps_a_hundred_voxels():
  # 0.6 ml at 1.5 x 1.5 x 2 mm are 133 voxels: three steps of 3 % in each axis leave 102.
  scans = cohort([case((1.5, 1.5, 2.0), (256, 200, 220), {'liver': 1500.0, 'kidney cyst': 0.6})])
  layout = rules.layout(scans, Room(48**3, 1, by_time=True), stride=8)
  assert layout.spacing == (1.6, 1.6, 2.2)
  assert 'kidney cyst (median 0.6 ml) keeps 100 voxels' in layout.why_spacing


def test_a_given_spacing_stays():
  layout = rules.layout(
    ABDOMEN, Room(48**3, 1, by_time=True), stride=8, spacing=(3.0, 3.0, 3.0), why='as given'
  )
  assert layout.spacing == (3.0, 3.0, 3.0) and layout.why_spacing == 'as given'


def test_narrow_foreground_is_clipped_as_nnunet_does():
  # Evenly from 0 to 100 HU: percentiles of half a percent are 0.5 and 99.5 HU.
  choice = rules.windows(cohort([case((1, 1, 1), (99, 99, 99), hu=(0, 100))]))
  assert choice.value == ((0.0, 100.0), (-1000.0, 400.0))


def test_foreground_of_one_value_has_a_window():
  # 48 to 51 HU, a bin of the histogram, counts as 50.
  choice = rules.windows(cohort([case((1, 1, 1), (99, 99, 99), hu=(48, 52))]))
  assert choice.value == ((25.0, 75.0), (-1000.0, 400.0))


def test_wide_foreground_keeps_a_window_of_soft_tissue():
  scans = [case((1, 1, 1), (99, 99, 99), hu=(-1000, 1500))]
  assert rules.windows(cohort(scans)).value == ((-175.0, 250.0), (-1000.0, 1500.0))


def test_datasets_of_other_numbers_of_classes_are_balanced_by_them():
  one = case((1, 1, 1), (99, 99, 99), source='a')
  two = case((1, 1, 1), (99, 99, 99), {'liver': 1.0, 'spleen': 1.0}, source='b')
  assert rules.balance(cohort([one, two])).value == 'classes'
  other = case((1, 1, 1), (99, 99, 99), {'spleen': 1.0}, source='b')
  assert rules.balance(cohort([one, other])).value == 'sources'


def test_patches_look_for_small_classes():
  # A litre of scan: 10 ml are 1 %, 100 ml are 10 %.
  small, large = (cohort([case((1, 1, 1), (100, 100, 100), {'liver': v})]) for v in (10.0, 100.0))
  assert rules.foreground(small).value == 0.8
  assert rules.foreground(large).value == 0.67


def test_organs_in_pieces_keep_them():
  whole = cohort([case((1, 1, 1), (99, 99, 99))])
  broken = cohort([case((1, 1, 1), (99, 99, 99), pieces=0.6)])
  assert rules.tidy(whole).value == ('largest',)
  assert rules.tidy(broken).value == ()
  tumours = cohort([case((1, 1, 1), (99, 99, 99), {'liver tumor': 1.0})])
  assert rules.tidy(tumours).value == ()
  template = TEMPLATE.extend([{'name': 'lymph node'}])  # which the rule leaves alone
  nodes = dataclasses.replace(
    case((1, 1, 1), (99, 99, 99), {'lymph node': 1.0}), pieces={'lymph node': 0.3}
  )
  both = cohort([case((1, 1, 1), (99, 99, 99)), nodes], template=template)
  assert rules.tidy(both).value == ('largest',)


def test_steps_fill_the_time_or_are_those_of_nnunet():
  assert rules.steps(2, None, None, timed=False).value == 250_000
  assert rules.steps(1, 480.0, 0.25, timed=True).value == 1900  # 1920, in two digits
  guessed = rules.steps(1, 480.0, 0.25, timed=False)
  assert guessed.value == 1900 and 'too little memory' in guessed.why


def test_a_longer_run_has_larger_patches_and_more_steps():
  steps, patch = rules.ANCHOR
  assert rules.room_by_time(steps * patch) == pytest.approx(patch)
  # Eight times the voxels: twice the patch, four times the steps.
  assert rules.room_by_time(8 * steps * patch) == pytest.approx(2 * patch)
  # nnU-Net's 250,000 steps of 2 x 128^3 voxels: 128^3 within a factor of three.
  assert 1 / 3 < rules.room_by_time(250_000 * 2 * 128**3) / 128**3 < 3


@pytest.mark.parametrize(
  ('steps', 'warmup', 'decay'), [(1200, 50, 0.99), (5600, 56, 0.9964), (100_000, 1000, 0.999)]
)
def test_the_schedule_is_near_that_of_configs_made_by_hand(steps, warmup, decay):
  """As of demo (50 and 0.99), openkbp_cpu (50 and 0.995) and base (1000 and 0.999)."""
  values = {choice.name: choice.value for choice in rules.schedule(steps)}
  assert (values['train.warmup_steps'], values['train.ema_decay']) == (warmup, decay)


@given(st.integers(1, 10**6))
def test_the_schedule_suits_any_number_of_steps(number):
  values = {choice.name: choice.value for choice in rules.schedule(number)}
  assert 0.99 <= values['train.ema_decay'] <= 0.999
  assert 1 <= values['train.warmup_steps'] <= max(number // 2, 1)
  assert values['train.checkpoint_every'] >= 1 and values['train.log_every'] >= 1
