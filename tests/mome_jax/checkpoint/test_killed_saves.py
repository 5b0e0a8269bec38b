"""Two processes save together and one is killed or stalls in it: what is resumed is whole."""

import os
import pathlib
import signal
import subprocess
import sys

import bucket
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
WORKER = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from mome_jax.training import multihost, sharding
multihost.initialize()
from jax.sharding import NamedSharding, PartitionSpec as P
from etils import epath
from ml_collections import ConfigDict
from mome_jax import checkpoint
from mome_jax.training.state import TrainState

folder, victim, number = epath.Path(sys.argv[1]), *map(int, sys.argv[2:])
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
      os.kill(os.getpid(), number)
  checkpointer.close()
except Exception as error:
  multihost.abandon(error)
if multihost.is_lead():
  print('went on from', begin, flush=True)
"""


@pytest.fixture
def place(request, tmp_path):
  """A folder on disk or in a bucket, what is in it, and the environment to reach it."""
  if request.param == 'disk':
    entries = lambda: {path.name for path in (tmp_path / 'checkpoints').iterdir()}
    yield tmp_path, entries, {**os.environ, 'PYTHONPATH': str(ROOT)}
    return
  with bucket.served(tmp_path / 'log') as environment:
    listed = lambda: bucket.names(environment, 'run/checkpoints/')
    entries = lambda: {name.split('/')[2] for name in listed()}
    yield f'gs://{bucket.NAME}/run', entries, bucket.inherited(environment)


@pytest.mark.parametrize(
  ('place', 'victim', 'number'),
  [
    ('disk', 1, signal.SIGKILL),
    pytest.param('disk', 0, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param('disk', 0, signal.SIGSTOP, marks=pytest.mark.slow),  # 100 s of heartbeats
    pytest.param('disk', 1, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param('bucket', 0, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param('bucket', 1, signal.SIGKILL, marks=pytest.mark.slow),
  ],
  indirect=['place'],
)
def test_one_of_two_is_killed_or_stalls_in_a_save(place, victim, number):
  folder, entries, environment = place

  def start():
    return subprocess.run(
      [sys.executable, ROOT / 'launch/local_processes.py', '-n', '2', '--devices', '1',
       '--grace=5', '--', sys.executable, '-c', WORKER, folder, str(victim),
       str(int(number))],
      env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip

  done = start()
  assert done.returncode, done.stderr[-2000:]
  if number == signal.SIGKILL:
    assert done.returncode == 128 + signal.SIGKILL, done.stderr[-2000:]
    assert f'process {victim} of 2 ended with -9' in done.stderr
  else:  # the other one notices, and the launcher ends what hangs
    assert f'process {1 - victim} of 2 ended with' in done.stderr
  done = start()
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'went on from 1' in done.stdout or 'went on from 2' in done.stdout
  assert entries() == {'2', '3'}
