"""Which validation is the best one, when a run ends early, and what may choose."""

import pytest
from etils import epath

from mome_jax.configs import demo
from mome_jax.training.monitor import Choice, Monitor, ValidationError
from mome_jax.training.validation_scans import HeldOutScans

ASIDE = HeldOutScans([], True, 'scans set aside')
WATCHED = HeldOutScans([], False, 'validation scans')


class Numbers:
  """Yields these Dice one after the other."""

  def __init__(self, *dice):
    self._dice = iter(dice)

  def __call__(self, ema, is_ending):
    return {'loss': 1.0, 'dice': next(self._dice)}

  def draw(self, path, ema, title, is_ending):
    raise AssertionError('nothing is to be drawn')


def monitor(scans, *dice, choice=None, **changes):
  config = demo.get_config()
  config.validation.update({'every': 10, 'cases': 2, 'smoothing': 0.5, 'picture': False} | changes)
  config.train.steps = 45
  return Monitor(config, scans, Numbers(*dice), choice or Choice(), epath.Path('nowhere'))


def test_smoothed_dice_by_hand():
  choice = Choice()
  rows = []
  for step, dice in ((10, 0.4), (20, 0.8), (30, 0.4), (40, 0.9)):
    choice = choice.after(step, dice, 0.5)
    rows.append((choice.smooth, choice.best, choice.best_step, choice.waited))
  assert rows == [
    pytest.approx(row)
    for row in ((0.4, 0.4, 10, 0), (0.6, 0.6, 20, 0), (0.5, 0.6, 20, 1), (0.7, 0.7, 40, 0))
  ]


def test_an_equal_one_is_no_better():
  choice = Choice().after(1, 0.5, 0.0).after(2, 0.5, 0.0)
  assert (choice.best_step, choice.waited) == (1, 1)


def test_patience():
  choice = Choice().after(1, 0.5, 0.0).after(2, 0.4, 0.0).after(3, 0.4, 0.0)
  assert [choice.is_exhausted(p) for p in (0, 1, 2, 3)] == [False, True, True, False]


def test_due_every_so_many_steps_and_at_the_end():
  assert [s for s in range(1, 46) if monitor(ASIDE).is_due(s)] == [10, 20, 30, 40, 45]
  assert [monitor(ASIDE).left(s) for s in (0, 9, 10, 40, 45)] == [5, 5, 4, 1, 0]
  silent = monitor(ASIDE)
  silent._validation = None
  assert not any(silent.is_due(s) for s in range(1, 46))


def test_a_run_that_goes_on_chooses_as_if_it_had_not_stopped():
  dice = 0.4, 0.8, 0.4, 0.3
  whole = monitor(ASIDE, *dice, patience=2)
  for step in (10, 20, 30, 40):
    whole.measure(step, None)
  first = monitor(ASIDE, *dice[:2], patience=2)
  first.measure(10, None), first.measure(20, None)
  assert first.is_best(20) and first.score(20) == pytest.approx(0.6) and not first.is_exhausted
  second = monitor(ASIDE, *dice[2:], choice=first.choice, patience=2)
  row = second.measure(30, None)
  assert row['validation/dice_smooth'] == pytest.approx(0.5)
  assert second.score(30) is None  # only the best one is to be chosen
  second.measure(40, None)
  assert second.choice == whole.choice
  assert second.is_exhausted and whole.is_exhausted


def test_a_run_that_is_asked_to_end_draws_nothing():
  """What is measured counts, as the next start does not measure it again."""
  ending = monitor(ASIDE, 0.4, picture=True)
  assert ending.measure(10, None, lambda: True)['validation/dice'] == 0.4
  assert ending.choice.best_step == 10


def test_what_a_run_that_is_asked_to_end_leaves_is_measured_when_it_goes_on():
  first = monitor(ASIDE, 0.4)
  first.measure(10, None)
  first._validation = lambda ema, is_ending: None
  assert first.measure(20, None, lambda: True) == {}
  assert first.is_unmeasured(20) and not first.is_unmeasured(10) and first.score(20) is None
  assert first.choice.best_step == 10 and first.choice.waited == 0
  second = monitor(ASIDE, 0.8, choice=first.choice)
  assert second.is_unmeasured(20)
  second.measure(20, None)
  assert second.score(20) == pytest.approx(0.6) and not second.is_unmeasured(20)
  second._validation = None  # by another `validation.every`
  assert not second.is_unmeasured(20)


def test_a_run_that_made_up_for_a_validation_announces_what_is_measured(capsys):
  """It began with `validation took 98 % of the time`."""
  one = monitor(ASIDE, 0.4)
  one.measure(10, None)
  one.announce()
  assert capsys.readouterr().out == 'validation every 10 steps on scans set aside\n'
  one.tell()
  assert capsys.readouterr().out.endswith(' % of the time; best at step 10\n')


def test_nothing_is_chosen_on_scans_that_are_scored():
  watching = monitor(WATCHED, 0.4, 0.8)
  row = watching.measure(10, None)
  assert row['validation/dice'] == 0.4
  assert 0 < row['validation/time_share'] <= 1
  assert not watching.is_best(10) and watching.score(10) is None
  with pytest.raises(ValidationError, match='validation.cases'):
    monitor(WATCHED, patience=1)


def test_best_needs_scans_set_aside():
  config = demo.get_config()
  config.evaluation.checkpoint = 'best'
  for scans in (None, WATCHED):
    with pytest.raises(ValidationError, match='evaluation.checkpoint=best'):
      Monitor(config, scans, None, Choice(), epath.Path('nowhere'))
  Monitor(config, ASIDE, None, Choice(), epath.Path('nowhere'))


def test_scans_set_aside_that_nothing_is_measured_on_are_refused():
  config = demo.get_config()
  config.validation.cases, config.validation.every = 4, 0
  with pytest.raises(ValidationError, match='cases=4 sets scans aside.*every=0 nothing'):
    Monitor(config, ASIDE, None, Choice(), epath.Path('nowhere'))
