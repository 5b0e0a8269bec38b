"""The search for what fits, by a compiler whose answers are known; test_trial asks the real one."""

import math

import pytest
from cohorts import case, cohort

from mome_jax.plan import fit, rules, trial
from mome_jax.plan.fit import Budget

ABDOMEN = cohort([case((1.5, 1.5, 2.0), (256, 200, 220))] * 40)
MACHINE = trial.Machine('here', 'cpu', 'cpu', 1, 2**35)


def search(
  memory, *, per_voxel, fixed=5e8, seconds=None, speed=1e-6, most=math.inf, known=True, tell=print
):
  """What is tried where a step needs fixed + per_voxel * voxels bytes, refused over `most`."""
  asked = []

  def compile_layout(layout):
    voxels = layout.batch * math.prod(layout.patch)
    asked.append(voxels)
    took, measured = (None, None) if seconds is None else (speed * voxels, 1)
    refused = voxels > most
    peak = None if refused and not known else int(fixed + per_voxel * voxels)
    return trial.Trial(peak, 1e9, 10_000_000, 1.0, measured, took, 'none', refused)

  attempts = fit.fit(
    ABDOMEN, MACHINE, Budget(memory, seconds),
    lambda room: rules.layout(ABDOMEN, room, stride=8), compile_layout, size='base', tell=tell,
  )  # fmt: skip
  assert len(attempts) == len(asked)
  return attempts


@pytest.mark.parametrize('per_voxel', [1_000, 6_000, 14_000, 40_000])
@pytest.mark.parametrize('memory', [4e9, 24e9, 80e9])
def test_few_compilations_find_what_fits(per_voxel, memory):
  attempts = search(memory, per_voxel=per_voxel)
  best = attempts[-1]
  assert best.fits and best.trial.peak <= memory
  assert len(attempts) <= fit.MOST + 1
  # A stride more along the shortest axis is up to a quarter more.
  assert best.trial.peak >= 0.6 * memory or best.layout.at_cap
  assert best.layout.batch >= 2


def test_two_answers_tell_what_a_third_needs():
  model = fit._Model(0, 1, 1)
  for voxels in (32**3, 48**3):
    model.learn(voxels, trial.Trial(int(5e8) + 6000 * voxels, 1e9, 10**7, 1.0, None, None, ''))
  assert model.peak(96**3) == 5e8 + 6000 * 96**3
  assert model.room(5e8 + 6000 * 96**3) == pytest.approx(96**3)


def test_one_answer_is_shared_by_parameters_and_voxels():
  model = fit._Model(0, 1, 1)
  model.learn(1000, trial.Trial(10**9, 1e9, 10**7, 1.0, None, 2.0, ''))
  assert model.peak(1000) == 10**9  # 24 bytes a parameter, the rest by voxels
  assert model.peak(2000) == pytest.approx(10**9 + (10**9 - 24 * 10**7))
  assert model.seconds == 2.0 / 1000


def test_time_bounds_the_patch():
  attempts = search(24e9, per_voxel=4_000, seconds=1680.0, speed=4.7e-6)
  # 28 minutes at 4.7 microseconds a voxel: the 358 million voxels of openkbp_cpu, so its patch.
  assert len(attempts) <= 2  # the first, by a guess of the speed, and one by what it took
  best = attempts[-1]
  assert 0.7 * 40**3 <= best.layout.voxels <= 1.2 * 40**3 and best.layout.batch == 1


def test_too_little_memory_is_explained():
  with pytest.raises(fit.FitError, match='even a patch of 32x32x32 voxels, 2 a step, needs'):
    search(1e8, per_voxel=14_000)


@pytest.mark.parametrize('known', [True, False])
def test_a_refused_step_does_not_fit_whatever_its_peak(known):
  """Where it ran, its peak is less than the memory; where the compiler gave up, nobody knows it."""
  lines = []
  attempts = search(24e9, per_voxel=6_000, most=1e6, known=known, tell=lines.append)
  best, refused = attempts[-1], attempts[0]
  assert not refused.fits and refused.layout.voxels * refused.layout.batch > 1e6
  assert best.fits and 0.3e6 <= best.layout.voxels * best.layout.batch <= 1e6
  told = 'GiB of 22.35 GiB, but out of memory (' if known else '  out of memory ('
  assert told in lines[1] and 'too much' not in lines[1]
  with pytest.raises(fit.FitError, match='even a patch of .* a step, ran out of memory; end other'):
    search(24e9, per_voxel=6_000, most=1, known=known)


@pytest.mark.parametrize(('voxels', 'classes', 'gib'), [
  (48 * 48 * 40, 12, 0.51), (40 * 40 * 56, 7, 0.40), (48 * 48 * 40, 3, 0.31),
  (56 * 56 * 32, 5, 0.39),
])  # fmt: skip
def test_the_first_guess_is_near_what_the_compiler_said_of_four_cohorts(voxels, classes, gib):
  """Of docs/how-to/plan.md: the small network, one patch a step, by XLA for the CPU."""
  assert fit._guess('small', 'cpu', classes).peak(voxels) / 2**30 == pytest.approx(gib, rel=0.05)
