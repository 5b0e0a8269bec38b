"""The best checkpoint is chosen on scans set aside, by a run that is ended in a validation."""

import contextlib
import json
import os
import signal
import types
from unittest import mock

import compiled
import jax
import pytest
from etils import epath
from jax.experimental import multihost_utils

from input_pipeline import bricks
from input_pipeline.prepare import prepare
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.configs import demo
from mome_jax.training import loop, multihost
from mome_jax.training.monitor import Choice, Monitor
from mome_jax.training.validation_scans import HeldOutScans

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
DICE = 0.2, 0.6, 0.5, 0.4  # of the four validations: the best one is the second


@pytest.fixture(autouse=True)
def compiled_once(programs):
  """Both starts of the run share what is compiled."""
  with compiled.kept(programs), compiled.soon():
    yield


@pytest.fixture
def config(tmp_path):
  prepare('phantom', tmp_path / 'data', spacing=(12.0,) * 3, brick=16, limit=15)
  config = demo.get_config()
  config.data_dir = str(tmp_path / 'data')
  config.data.spacing = (12.0, 12.0, 12.0)
  config.data.patch = config.evaluation.window = (16, 16, 16)
  config.model.backbone.size = 'tiny'
  config.model.experts = 'finest'  # what compiles soonest
  config.init.text, config.text.num_layers = '', 1
  config.train.negatives = 0
  config.train.update({'steps': 20, 'log_every': 1, 'checkpoint_every': 4, 'keep_checkpoints': 1})
  config.validation.update(
    {'every': 2, 'cases': 1, 'patches': 2, 'patience': 2, 'smoothing': 0.0, 'picture': False}
  )
  config.evaluation.checkpoint = 'best'
  return config


class Ended(Exception):
  """Stands for whatever ends a process."""


def test_the_best_checkpoint_of_a_run_that_was_ended_in_a_validation(
  config, tmp_path, monkeypatch, capsys
):
  """The model is measured for real; only the number it is chosen by is given."""
  measure = Monitor.measure
  ends, preempted = [6], [4]

  def choose(self, step, ema, is_ending=lambda: False):
    if ends[:1] == [step]:
      ends.pop()
      raise Ended
    if preempted[:1] == [step]:  # as the best is about to be measured
      preempted.pop()
      os.kill(os.getpid(), signal.SIGTERM)
    validation = self._validation
    given = {'dice': DICE[step // 2 - 1]}
    self._validation = lambda *asked: None if (row := validation(*asked)) is None else row | given
    try:
      return measure(self, step, ema, is_ending)
    finally:
      self._validation = validation

  monkeypatch.setattr(Monitor, 'measure', choose)
  workdir = epath.Path(tmp_path / 'run')
  with pytest.raises(multihost.Preempted, match='saved at step 4'):
    loop.train(config, workdir)
  assert checkpoint.locate(workdir, 'best').step == 2
  with pytest.raises(Ended):
    loop.train(config, workdir)
  assert checkpoint.locate(workdir, 'best').step == 4
  loop.train(config, workdir)
  assert jax.sharding.get_mesh().empty  # scoring, which follows, has a mesh of this host alone
  printed = capsys.readouterr().out
  assert 'scans set aside from training: 1 of 5 phantom_kidney' in printed
  assert printed.count('validation every 2 steps on ') == 3  # of what was made up for, nothing else
  assert printed.count('measuring step 4, where the run was asked to end') == 1
  assert 'ended early: 8 of 20 steps are done, the best at 4' in printed
  log = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in log] == list(range(1, 9))
  assert [row['validation/dice'] for row in log if 'validation/dice' in row] == list(DICE)
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['4', '8']
  assert checkpoint.load_model(workdir, DEVICE).step == 4
  assert checkpoint.load_model(workdir, DEVICE, 'last').step == 8

  # The same command again ends at once; one that waits longer goes on.
  loop.train(config, workdir)
  printed = capsys.readouterr().out
  assert 'run is trained: 8 of 20 steps are done' in printed and 'changed' not in printed

  # Scored otherwise, it is predicted with and exported alike; nothing else is described anew.
  before = checkpoint.load_config(workdir)
  other = config.copy_and_resolve_references()
  other.evaluation.checkpoint, other.train.steps, other.train.learning_rate = 'last', 6, 1.0
  loop.train(other, workdir)
  assert 'changed since: evaluation.checkpoint: best -> last\n' in capsys.readouterr().out
  assert checkpoint.load_model(workdir, DEVICE).step == 8
  before.evaluation.checkpoint = 'last'
  assert checkpoint.load_config(workdir) == before

  # What was set aside is not among the training cases.
  store = bricks.open_bricks(config.data_dir, 'phantom')
  every = {(case.source, case.name, case.digest) for case in store.cases}
  trained = training_cases.read(workdir).cases
  assert trained < every and len(every - trained) == 3


@pytest.fixture
def make_up(tmp_path, monkeypatch):
  """Has a checkpoint of step 4 made up for by several processes that agree to end at some call."""

  def make_up(call):
    calls = []
    asked = lambda number: calls.append(number) or len(calls) == call
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', asked)
    measure = lambda ema, is_ending: None if is_ending() or is_ending() else {'dice': 0.5}
    scans = HeldOutScans([], True, 'scans set aside')
    config = demo.get_config()
    config.validation.picture = False
    monitor = Monitor(config, scans, measure, Choice(unmeasured=4), tmp_path)
    start = types.SimpleNamespace(step=4, state=types.SimpleNamespace(ema=None))
    checkpointer = mock.Mock()
    ended = pytest.raises(multihost.Preempted, match='saved at step 4')
    with ended if call <= 3 else contextlib.nullcontext():
      loop._make_up(monitor, start, epath.Path(tmp_path), checkpointer)
    multihost.Preemption().requested()
    assert calls == list(range(calls[0], calls[0] + len(calls)))  # JAX compares with `==`
    return monitor, checkpointer

  return make_up


def test_several_processes_leave_what_is_made_up_for_as_well(make_up, tmp_path):
  """They heard SIGTERM after the validation, its picture, a compilation and a step."""
  monitor, checkpointer = make_up(call=2)
  assert monitor.is_unmeasured(4) and not any(tmp_path.iterdir())
  checkpointer.rate.assert_not_called()
  checkpointer.close.assert_called_once()


@pytest.mark.parametrize('call', [3, 9])
def test_what_is_made_up_for_is_noted(call, make_up, tmp_path):
  """Else the same command would measure a trained run again and again."""
  _, checkpointer = make_up(call)
  [rated] = checkpointer.rate.call_args_list
  choice = {'smooth': 0.5, 'best': 0.5, 'best_step': 4, 'waited': 0, 'unmeasured': None}
  assert rated == mock.call(4, choice, 0.5)
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['validation/dice'] == 0.5
