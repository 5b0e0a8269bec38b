"""Two processes save together and one is killed in it: what is resumed is whole."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
WORKER = """
import os, pathlib, signal, sys
import jax, jax.numpy as jnp, numpy as np
from mome_jax.training import multihost, sharding
multihost.initialize()
from jax.sharding import NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict
from mome_jax import checkpoint
from mome_jax.training.state import TrainState

folder, victim = pathlib.Path(sys.argv[1]), int(sys.argv[2])
mesh = sharding.make_mesh(ConfigDict({'data': -1, 'expert': 1, 'spatial': False}))
jax.set_mesh(mesh)
SHAPE = 512, 2048

def state(step):
  fill = lambda spec, value: jax.make_array_from_callback(
    SHAPE, NamedSharding(mesh, spec), lambda index: np.full(SHAPE, value, np.float32)[index])
  params = {'model': {'split': fill(P('data'), step), 'copied': fill(P(), step)}}
  number = jax.make_array_from_callback((), NamedSharding(mesh, P()), lambda _: np.int32(step))
  return TrainState(number, params, params, (params,))

abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
checkpointer = checkpoint.Checkpointer(folder)
restored = checkpointer.restore(abstract, ConfigDict())
begin = 0
if restored is not None:
  begin = restored[1]['step']
  for leaf in jax.tree.leaves(restored[0]):
    assert all((np.asarray(shard.data) == begin).all() for shard in leaf.addressable_shards)
try:
  for step in range(begin + 1, 4):
    checkpointer.save(step, state(step), {'step': step})
    if step == 2 and not begin and jax.process_index() == victim:
      os.kill(os.getpid(), signal.SIGKILL)
  checkpointer.close()
except Exception as error:
  multihost.abandon(error)
if multihost.is_lead():
  print('went on from', begin, flush=True)
"""


@pytest.mark.parametrize('victim', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_of_two_is_killed_in_a_save(tmp_path, victim):
  def start():
    return subprocess.run(
      [sys.executable, ROOT / 'launch/local_processes.py', '-n', '2', '--devices', '1',
       '--grace=5', '--', sys.executable, '-c', WORKER, tmp_path, str(victim)],
      env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip

  done = start()
  assert done.returncode == 128 + signal.SIGKILL, done.stderr[-2000:]
  assert f'process {victim} of 2 ended with -9' in done.stderr
  done = start()
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'went on from 1' in done.stdout or 'went on from 2' in done.stdout
  names = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert names == ['2', '3']
