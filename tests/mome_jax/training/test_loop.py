"""The loop around the steps, with make-believe ones."""

import os
import signal
import types

import jax.numpy as jnp
import pytest
from etils import epath

from mome_jax.configs import base
from mome_jax.training import loop, multihost


def start_at(step):
  where = types.SimpleNamespace(sharding=None)
  return types.SimpleNamespace(
    step=step, params=None, state=types.SimpleNamespace(step=where, params=None, ema=None)
  )


def test_the_curves_of_fewer_steps_are_no_mark_of_the_end(tmp_path, monkeypatch):
  """A finished run that goes on, and is ended after its last checkpoint, kept them for good."""
  curves = tmp_path / 'pictures/training.png'
  curves.parent.mkdir()
  curves.write_bytes(b'of 8 steps')
  for name in ('MetricsLog', '_print_start'):
    monkeypatch.setattr(loop, name, lambda *_: None)
  monitor = types.SimpleNamespace(announce=lambda: None)
  task = types.SimpleNamespace(config=base.get_config())
  loop._Recorder(task, epath.Path(tmp_path), None, start_at(8), monitor)
  assert not curves.exists()


def until_asked_to_end(monkeypatch, train_step, **monitor):
  """What a run of nine steps saves and closes that is asked to end."""
  told, config = [], base.get_config()
  config.train.steps, config.train.batch_size = 9, 1
  trace = types.SimpleNamespace(before=lambda *_: None, close=lambda: told.append('profile'))
  known = {'left': lambda _: 0, 'is_due': lambda _: False, 'is_best': lambda _: False}
  recorder = types.SimpleNamespace(
    monitor=types.SimpleNamespace(**known | monitor, is_exhausted=False),
    trace=lambda _: trace,
    row=lambda *_: {},
    write=lambda *_, **__: None,
    save=lambda step, _: told.append(step),
    close=lambda: None,
  )
  forecast = types.SimpleNamespace(announce=list, step=lambda _: None, row=lambda _: None)
  monkeypatch.setattr(loop, 'Forecast', lambda *_: forecast)
  monkeypatch.setattr(loop, '_compile', lambda *_: train_step)
  task = types.SimpleNamespace(config=config)
  feed = ((None, None) for _ in range(9))
  with pytest.raises(multihost.Preempted):
    loop._loop(task, start_at(0), train_step, feed, recorder)
  return told


def test_a_run_that_is_asked_to_end_closes_its_profile(monkeypatch):
  """What was traced until then was lost."""

  def train_step(state, batch, prompts):
    os.kill(os.getpid(), signal.SIGTERM)
    return state, {'loss': jnp.ones(())}

  assert until_asked_to_end(monkeypatch, train_step) == [1, 'profile']


def test_a_run_that_is_asked_to_end_in_a_validation_saves_after_it(monkeypatch):
  """It drew a picture and did a further step first, which few systems wait for."""

  def measure(step, ema, is_ending):
    assert not is_ending()
    os.kill(os.getpid(), signal.SIGTERM)
    assert is_ending()
    return {}

  told = until_asked_to_end(
    monkeypatch,
    lambda state, *_: (state, {'loss': jnp.ones(())}),
    is_due=lambda step: step == 3,
    measure=measure,
  )
  assert told == [3, 'profile']
