"""A checkpoint in CUM's layout, whole: converted, trained further, asked for masks."""

import json

import jax
import nibabel as nib
import numpy as np
import pytest
import torch
from etils import epath

from input_pipeline.prepare import prepare
from mome_jax import checkpoint, predict
from mome_jax.training import config_flag, loop
from mome_jax.weights import command as convert
from tests.mome_jax.weights import layouts

CLASSES = 32

pytestmark = pytest.mark.slow  # two minutes, most of them for the compiler


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The model folder of a made-up checkpoint with the names and shapes of the published one."""
  folder = tmp_path_factory.mktemp('universal')
  state = layouts.unet_state(CLASSES)
  tensors = {f'module.{name}': torch.from_numpy(value) for name, value in state.items()}
  torch.save({'net': tensors, 'epoch': 1, 'optimizer': {}, 'scheduler': {}}, folder / 'unet.pth')
  convert.main(
    ['--source=universal_unet', f'--checkpoint={folder / "unet.pth"}', f'--output={folder / "cum"}']
  )
  return folder / 'cum'


def write_scan(path, side, spacing):
  hu = np.random.default_rng(0).normal(0, 100, (side,) * 3).astype(np.int16)
  nib.save(nib.Nifti1Image(hu, np.diag([spacing] * 3 + [1])), path)
  return path


def ask(model, scan):
  """The legend that predict writes for a scan."""
  output = scan.with_name('out')
  line = ['--checkpoint', str(model), '--input', str(scan), '--output', str(output)]
  assert predict.main(line) == 0
  return json.loads((output / f'{scan.name.removesuffix(".nii.gz")}_seg.json').read_text())


def test_training_starts_from_it(model, tmp_path, capsys):
  prepare('phantom', tmp_path / 'data', spacing=(12.0,) * 3, brick=16, limit=3)
  config = config_flag.load(f'finetune:{model}')
  config.data_dir = str(tmp_path / 'data')
  config.data.sources = ('phantom',)
  config.data.spacing = (12.0, 12.0, 12.0)
  config.data.patch = config.evaluation.window = (16, 16, 16)
  config.evaluation.pictures = 0
  config.model.experts = 'pyramid'
  config.model.anchor = 'finest'
  config.model.dtype = 'float32'
  config.train.steps = config.train.batch_size = 1
  config.train.learning_rate = 0.0  # every parameter can be told
  workdir = epath.Path(tmp_path / 'mine')
  loop.train(config, workdir)
  fresh = 'expert_1, model/expert_2, model/expert_3, model/mixture_share, model/router'
  assert f'starting from {model}; random: model/{fresh}\n' in capsys.readouterr().out
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  before, after = (checkpoint.load_model(path, device) for path in (model, workdir))
  for name, leaves in before.params['model'].items():
    jax.tree.map(np.testing.assert_array_equal, leaves, after.params['model'][name])
  legend = ask(workdir, write_scan(tmp_path / 'scan.nii.gz', 16, 12.0))
  assert len(legend['labels']) == CLASSES


def test_it_predicts_at_its_own_window(model, tmp_path):
  legend = ask(model, write_scan(tmp_path / 'scan.nii.gz', 60, 1.5))
  assert len(legend['labels']) == CLASSES
