"""The training of the peers: resumed runs, and which parameters are scored."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from mome_jax.configs import openkbp_cpu
from tests.benchmarks.peers import recipes, training
from tests.benchmarks.peers.measurements import CHECKPOINT
from tests.benchmarks.peers.trainer import Trainer

SIDE = 16


def make_trainer(**changes):
  build = functools.partial(recipes.dynunet, filters=(4, 4, 8), heads=1)
  recipe = dataclasses.replace(recipes.RECIPES['dynunet'], build=build, **changes)
  config = openkbp_cpu.get_config()
  codes = np.zeros((256, len(config.classes)), bool)
  codes[1, 0] = codes[2, 1] = True
  return Trainer(recipe, config, codes, 'cpu')


def batch(step):
  rng = np.random.default_rng(step)
  return {
    'image': rng.uniform(size=(1, SIDE, SIDE, SIDE, 2)).astype(np.float32),
    'label': rng.integers(0, 3, (1, SIDE, SIDE, SIDE)).astype(np.uint8),
    'supervised': np.array([[True] * 3 + [False] * 4]),
    'frame': np.array([[0, 0, 3, 0]], np.float32),
    'slice_range': np.tile(np.array([-np.inf, np.inf], np.float32), (1, 7, 1)),
  }


def test_a_restored_training_goes_on_as_if_it_had_not_stopped():
  whole, first, second = (make_trainer() for _ in range(3))
  for step in range(4):
    whole.update(batch(step), step / 4)
  for step in range(2):
    first.update(batch(step), step / 4)
  second.restore(first.state())
  for step in range(2, 4):
    second.update(batch(step), step / 4)
  assert second.step == 4
  for got, expected in zip(second.state()['network'].values(), whole.network.state_dict().values(),
                           strict=True):  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
  for name, expected in whole.average.items():
    torch.testing.assert_close(second.average[name], expected, rtol=1e-5, atol=1e-6)


def test_a_training_on_the_data_of_another_experiment_is_not_resumed(tmp_path, monkeypatch):
  monkeypatch.setattr(training, 'make_trainer', lambda *_: make_trainer())
  config = recipes.make_config('dynunet', 'regions_cpu')
  settings = {'peer': 'dynunet', 'steps': 2, 'minutes': 0.0, 'seed': config.seed}
  settings |= {'sources': config.data.sources, 'classes': config.classes}
  for noted in ({}, {'experiment': 'openkbp'}):  # at first, the experiment was not noted
    torch.save({'settings': settings | noted}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="'experiment': 'openkbp.*'regions_cpu'.*; choose another"):
      training.train('dynunet', config, tmp_path, device='cpu', steps=2)


def test_an_unsupervised_class_learns_nothing():
  trainer = make_trainer()
  trainer.loss(batch(0)).backward()
  gradient = trainer.network.output_block.conv.conv.weight.grad
  assert gradient[:3].flatten(1).any(1).all() and not gradient[3:].any()


def test_scored_are_the_averaged_parameters():
  trainer = make_trainer(ema_decay=0.0)
  trainer.update(batch(0), 0.0)
  last = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
  for name, parameter in trainer.averaged().named_parameters():
    torch.testing.assert_close(parameter.detach(), last[name])
  trainer = make_trainer(ema_decay=1.0)
  before = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
  trainer.update(batch(0), 0.0)
  # Early in training the average forgets nine tenths a step.
  for name, parameter in trainer.network.named_parameters():
    expected = 0.1 * before[name] + 0.9 * parameter.detach()
    torch.testing.assert_close(trainer.average[name], expected, rtol=1e-4, atol=1e-5)
