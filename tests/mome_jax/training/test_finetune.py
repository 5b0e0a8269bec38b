"""Fine-tuning a model with frozen text, and prompts that its vectors do not hold."""

import functools
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
import torch
import transformers
from etils import epath

from input_pipeline.prepare import prepare
from mome_jax import checkpoint, predict
from mome_jax.configs import demo
from mome_jax.models import build_model
from mome_jax.text import embedders, prompts, tokenizer
from mome_jax.text.vectors import TextVectors
from mome_jax.training import config_flag, loop, state
from mome_jax.training.start import read_task

pytestmark = pytest.mark.usefixtures('soon')

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


# A moving average of one value is that value, rounded.
assert_same = functools.partial(np.testing.assert_allclose, rtol=1e-6)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with phantoms, a tiny T5 and its vectors of two classes."""
  folder = tmp_path_factory.mktemp('finetune')
  prepare('phantom', folder / 'data', spacing=(12.0,) * 3, brick=16, limit=3)
  torch.manual_seed(0)
  sizes = {
    'vocab_size': 2048,
    'd_model': 16,
    'd_kv': 8,
    'd_ff': 16,
    'num_layers': 1,
    'num_heads': 2,
  }
  transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(folder / 't5')
  shutil.copy(tokenizer.DEFAULT_MODEL, folder / 't5' / 'spiece.model')
  expected = prompts.training_prompts(names=['liver', 'spleen'])
  embedders.open_model(folder / 't5')(expected).save(folder / 'text.npz')
  return folder


@pytest.fixture(scope='module')
def start(place):
  """A model folder of the baseline network with frozen text and random parameters."""
  config = demo.get_config()
  config.data_dir = str(place / 'data')
  config.classes = ('liver',)
  config.data.spacing = (12.0, 12.0, 12.0)
  config.data.patch = config.evaluation.window = (16, 16, 16)
  config.model.backbone.size = 'tiny'
  config.model.experts = 'finest'
  config.text.update({'mode': 'frozen', 'd_model': 16})
  create = functools.partial(state.init_params, config, build_model(config.model), None)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
    jax.eval_shape(create, jax.random.key(0)),
  )
  vectors = TextVectors.load(place / 'text.npz')
  checkpoint.save_model(place / 'start', config, params, vectors=vectors)
  return place / 'start'


def test_fine_tuning_with_frozen_text(place, start, capsys):
  config = config_flag.load(f'finetune:{start}')
  assert config.model.backbone.size == 'tiny'
  assert config.text.vectors == str(start / 'text.npz')
  config.classes = ('liver', 'spleen')
  config.model.experts = 'pyramid'
  config.model.scales = (0, 1)  # two of four: it compiles in half the time
  config.train.steps = 2
  config.train.log_every = 1
  config.train.learning_rate = 0.0  # every parameter can be told
  config.validation.every = 0
  workdir = epath.Path(place / 'mine')
  loop.train(config, workdir)
  random = 'model/expert_1, model/router'
  assert f'starting from {start}; random: {random}\n' in capsys.readouterr().out
  before, after = (checkpoint.load_model(path, DEVICE) for path in (start, workdir))
  assert set(after.params) == {'model'}
  for name, leaves in before.params['model'].items():
    jax.tree.map(assert_same, leaves, after.params['model'][name])
  assert after.config.classes == ('liver', 'spleen')
  log = [json.loads(line) for line in (place / 'mine' / 'metrics.jsonl').read_text().splitlines()]
  assert np.isfinite([row['loss'] for row in log]).all()
  assert 'loss_text' not in log[0]
  assert log[1]['patches_per_second'] > 0

  # What is added to evaluate with other names stays when the run goes on.
  vectors = TextVectors.load(workdir / 'text.npz')
  other = TextVectors(('hepatic tissue',), np.ones((1, 16), np.float32), vectors.source)
  vectors.with_others(other).save(workdir / 'text.npz')
  assert 'hepatic tissue' in read_task(config, workdir).text.vectors

  # It goes on without what it started from, too.
  config.text.vectors = config.init.checkpoint = str(start.parent / 'gone' / 'start')
  checkpoint.save_description(workdir, config, vectors=vectors.with_others(other))
  assert 'hepatic tissue' in read_task(config, workdir).text.vectors


def test_prompts_beyond_the_vectors(place, start, capsys):
  scan = place / 'scan.nii.gz'
  hu = np.random.default_rng(0).normal(0, 100, (20, 20, 20)).astype(np.int16)
  nib.save(nib.Nifti1Image(hu, np.diag([12.0, 12, 12, 1])), scan)
  asked = ['--checkpoint', str(start), '--input', str(scan), '--output', str(place / 'out')]
  prompts_option = '--prompts=liver, the thing on top'
  asked.append('--force')
  assert predict.main([*asked, prompts_option]) == 1
  message = capsys.readouterr().err.strip().splitlines()[-1]
  assert "no vector for 'the thing on top'" in message
  assert '--text-model' in message
  assert '(t5)' in message
  assert predict.main([*asked, prompts_option, '--text-model', str(place / 't5')]) == 0
  legend = json.loads((place / 'out' / 'scan_seg.json').read_text())['labels']
  assert [row['label'] for row in legend] == [6, 200]
