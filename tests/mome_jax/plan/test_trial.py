"""What a training step needs, asked of the real compiler: a tiny network, compiled once."""

import math

import pytest

from mome_jax.configs import demo
from mome_jax.plan import trial


def tiny(edge=32):
  config = demo.get_config()
  config.classes = ('liver', 'spleen')
  config.model.backbone.size = 'tiny'
  config.data.patch = (edge, edge, edge)
  return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('answers')


@pytest.fixture(scope='module')
def answer(folder):
  return trial.run(tiny(), trial.HERE, execute=True, folder=folder)


def test_a_step_is_compiled_and_run(answer):
  # Parameters, their average and two moments in float32 are the least it holds.
  assert answer.peak > 16 * answer.parameters
  assert answer.measured > 0
  assert 0 < answer.seconds < 60
  # Each convolution multiplies once forward and twice backward: more than that of the first layer.
  assert answer.flops > 3 * 2 * 27 * 2 * 4 * 32**3
  assert answer.compiler.startswith('jax ')


def test_it_is_asked_once(answer, folder, monkeypatch):
  def never(*arguments):
    raise AssertionError('asked again')

  monkeypatch.setattr(trial, '_apart', never)
  steps = tiny()
  steps.train.steps, steps.train.warmup_steps, steps.seed = 7, 1, 3  # of no consequence
  assert trial.run(steps, trial.HERE, execute=True, folder=folder) == answer
  for other in (tiny(40), _with(tiny(), 'train.batch_size', 2), _with(tiny(), 'model.remat', True)):
    with pytest.raises(AssertionError, match='asked again'):
      trial.run(other, trial.HERE, execute=True, folder=folder)
  with pytest.raises(AssertionError, match='asked again'):
    trial.run(tiny(), trial.HERE, execute=True, folder=folder, again=True)


def _with(config, name, value):
  config.update_from_flattened_dict({name: value})
  return config


def test_a_damaged_answer_is_asked_for_again(folder, answer, monkeypatch):
  monkeypatch.setattr(trial, '_apart', lambda *arguments: answer)
  config = tiny(48)
  file = folder / f'{trial._key(config, trial.HERE, True)}.json'
  file.write_text('{"peak": ')
  assert trial.run(config, trial.HERE, execute=True, folder=folder) == answer
  assert trial.run(config, trial.HERE, execute=True, folder=None) == answer


def test_this_machine():
  machine = trial.find_machine('cpu:2')
  assert (machine.platform, machine.devices) == ('cpu', 2)
  assert machine.memory == pytest.approx(trial.free_memory() / 2, rel=0.2)
  assert 0 < trial.free_memory() < math.inf
