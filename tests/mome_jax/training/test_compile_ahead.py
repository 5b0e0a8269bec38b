"""Compiling for devices that are not there."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mome_jax import main
from mome_jax.training import compile_ahead

ROOT = pathlib.Path(__file__).resolve().parents[3]
TINY = [
  f'--config={ROOT / "mome_jax/configs/sparse_8.py"}',
  '--config.model.backbone.size=tiny',
  '--config.model.scales=(0,1)',
  '--config.model.bank.scales=(1,)',
  '--config.data.patch=(16,16,16)',
  '--config.evaluation.window=(16,16,16)',
  '--config.text.num_layers=1',
  '--config.init.text=',  # which has two
]


def compile_for(topology, *changes):
  return subprocess.run(
    [sys.executable, '-m', 'mome_jax.main', '--mode=compile', f'--topology={topology}', *TINY,
     *changes],
    cwd=ROOT, env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'}, capture_output=True, text=True,
  )  # fmt: skip


@pytest.mark.slow  # that of two slices proves the same, and more
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_a_tpu_without_a_tpu():
  done = compile_for('v5e:2x4', '--config.mesh.expert=4')
  assert done.returncode == 0, done.stderr[-2000:]
  report = json.loads(done.stdout)
  assert report['chips'] == 8
  assert report['mesh'] == {'data': 2, 'expert': 4}
  check_step(report)


def check_step(report):
  train = report['train']
  assert train['fits']
  assert train['hbm']['peak'] > 2 * 4 * report['parameters']
  assert train['collectives']['all-to-all']['count'] == 4  # two, forward and backward
  assert train['flops'] > 3 * report['see']['flops'] > 3 * report['read']['flops'] > 0


def test_what_the_chips_cannot_share_is_explained_in_one_line():
  done = compile_for('cpu:8', '--config.train.batch_size=4')
  assert done.returncode == 1
  assert 'train.batch_size=4 cannot be shared evenly' in done.stderr.strip().splitlines()[-1]


def test_an_unknown_topology_says_what_is_known():
  with pytest.raises(
    compile_ahead.TopologyError, match='expected here, cpu:N or one of v5e, v5p, v6e with a shape'
  ):
    compile_ahead.compile_config(None, 'v9:4x4')


@pytest.mark.parametrize('family', ['v5e', 'v5p', 'v6e'])
def test_a_number_of_chips_is_a_shape_of_as_many(family):
  for number, shape in compile_ahead._SHAPES[family].items():
    assert math.prod(map(int, shape.split('x'))) == int(number)


def test_the_devices_of_this_machine():
  assert compile_ahead.find_devices('here') == (jax.devices(), jax.default_backend())


def test_what_is_donated_to_a_gpu_is_reused():
  """JAX lowers for cuda and rocm: by the name of their devices, gpu, it donated nothing."""
  traced = jax.jit(lambda x: x + 1, donate_argnums=0).trace(jnp.ones(256))
  memory = compile_ahead.memory(compile_ahead.compile_traced(traced, 'gpu'))
  assert memory['reused'] == memory['arguments'] == memory['outputs'] == 4 * 256
  assert memory['peak'] == 4 * 256 + memory['temporaries']


def test_collectives_are_read_from_the_program():
  hlo = """
    %a = (f32[2,4]{1,0}, f32[2,4]{1,0}) all-to-all(%x, %y), dimensions={0}
    ROOT %b = bf16[8,4]{1,0} all-gather(%z), dimensions={0}
    %c = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%w), dimensions={0}
    %d = bf16[16]{0} all-gather-done(%c)
    %e = f32[] all-reduce(%v), to_apply=%add
    %f = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) send(%b, %t), x={"xla_megascale_runtime"}
    %g = token[] send-done(%f), x={"xla_megascale_runtime"}
    %h = (f32[9]{0}, u32[], token[]) send(%b, %t), channel_id=2
  """
  assert compile_ahead.collectives(hlo) == {
    'all-to-all': {'count': 1, 'bytes': 64},
    'all-gather': {'count': 2, 'bytes': 64 + 32},
    'all-reduce': {'count': 1, 'bytes': 4},
    'between slices': {'count': 1, 'bytes': 64},
  }


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_two_slices_exchange_gradients_alone():
  """Of the two all-to-alls none leaves its slice; what does is no more than the parameters."""
  done = compile_for('2xv5e:2x2', '--config.mesh.expert=4')
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'GB moved a patch' in done.stderr  # the table of it
  report = json.loads(done.stdout)
  assert (report['slices'], report['chips']) == (2, 8)
  assert report['mesh'] == {'data': 2, 'expert': 4}
  check_step(report)
  exchanges = report['train']['collectives']
  assert 0 < exchanges['between slices']['bytes'] < 2 * 4 * report['parameters']


@pytest.mark.parametrize('topology', ['0xv5e:2x2', '2xcpu:4', 'xv5e:2x2', '2x', '2xv9:2x2'])
def test_slices_of_what_there_is_not(topology):
  with pytest.raises(compile_ahead.TopologyError, match='or 2xv5e:4x4 for two slices'):
    compile_ahead.find_devices(topology)


def test_a_prediction_that_is_too_large_costs_nothing_of_what_is_known_of_training(
  monkeypatch, capsys
):
  def measure(traced, *_, **__):
    if traced == 'see':
      raise compile_ahead.TooLargeError('see: out of memory; lower evaluation.window', 2**40)
    kinds = {'total': 1e9, 'kinds': {'copy': 1e9}}
    return {'hbm': {'peak': 2**30}, 'fits': True, 'roofline': None, 'traffic': kinds,
            'patches_per_chip': 1, 'flops_per_patch': 1e12}  # fmt: skip

  monkeypatch.setattr(compile_ahead, 'trace_train_step', lambda *_: ('train', {}))
  monkeypatch.setattr(compile_ahead, '_trace_prediction', lambda *_: {'see': 'see', 'read': 'read'})
  monkeypatch.setattr(compile_ahead, 'measure', measure)
  assert main.main(['--mode=compile', '--config=demo', '--topology=here']) == 1
  told = capsys.readouterr()
  report = json.loads(told.out)
  assert report['train']['hbm']['peak'] == 2**30 and report['read']['fits']
  assert report['see'] == {'fits': False, 'error': 'see: out of memory; lower evaluation.window'}
  assert '| train | read |' in told.err
  assert told.err.splitlines()[-1] == 'error: see: out of memory; lower evaluation.window'
