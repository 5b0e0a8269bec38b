"""Checksums of arrays: by hand, alike wherever they are taken, and blind to no flipped bit."""

import json
import os
import pathlib
import random
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mome_jax import checkpoint
from mome_jax.checkpoint import checksums
from mome_jax.configs import demo
from mome_jax.training.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_by_hand():
  """1 x 5 + 3 x 7 + 5 x 2 = 36; -1 is the word 2^32 - 1: it takes 1 away where it comes first."""
  assert checksums.of_array(np.array([[5, 7, 2]], np.int32)) == 36
  assert checksums.of_array(np.array([-1, 1], np.int32)) == 2
  assert checksums.of_array(np.float32(1.0)) == 0x3F800000
  assert checksums.of_array(np.zeros((0, 3), np.float32)) == 0


def test_long_arrays_are_summed_in_parts(monkeypatch):
  array = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  whole = checksums.of_array(array)
  monkeypatch.setattr(checksums, '_WORDS', 7)
  assert checksums.of_array(array) == whole


@pytest.mark.parametrize('shape', [(), (5,), (3, 4, 5), (2, 0)])
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.int32, np.bool_])
def test_the_same_on_devices(shape, dtype):
  array = jnp.asarray(np.random.default_rng(1).normal(size=shape) * 9, dtype)
  assert int(checksums._of_arrays([array])[0]) == checksums.of_array(np.asarray(array))


def test_storage_in_bfloat16_changes_nothing():
  array = np.asarray(jnp.arange(9, dtype=jnp.bfloat16))
  assert checksums.of_array(array) == checksums.of_array(array.astype(np.float32))


@hypothesis.given(
  st.integers(0, 59), st.integers(0, 31), st.lists(st.integers(0, 2**32 - 1), min_size=60)
)
def test_a_flipped_bit_is_seen(place, bit, words):
  array = np.array(words, np.uint32).view(np.int32)
  other = array.view(np.uint32).copy()
  other[place] ^= np.uint32(1 << bit)
  assert checksums.of_array(array) != checksums.of_array(other.view(np.int32))


TWO = """
import jax, numpy as np
from mome_jax.training import multihost, sharding
multihost.initialize()
from jax.sharding import NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict
from mome_jax.checkpoint import checksums
mesh = sharding.make_mesh(ConfigDict({'data': -1, 'expert': 1, 'spatial': False}))
jax.set_mesh(mesh)
whole = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
place = lambda spec: jax.make_array_from_callback(
  whole.shape, NamedSharding(mesh, spec), lambda index: whole[index])
tree = {'split': place(P('data')), 'copied': place(P()),
        'own': jax.device_put(whole, jax.local_devices()[0])}
assert set(checksums.of_tree(tree).values()) == {checksums.of_array(whole)}
"""


def test_processes_share_arrays_and_have_others_alone():
  done = subprocess.run(
    [sys.executable, ROOT / 'launch/local_processes.py', '-n', '2', '--devices', '2', '--',
     sys.executable, '-c', TWO],
    env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=200,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]


def test_changed_arrays_are_named():
  tree = {'a': {'kernel': np.ones(3, np.float32)}, 'b': np.int32(2)}
  sums = checksums.of_tree(tree)
  assert list(sums) == ['a/kernel', 'b']
  assert checksums.changed(tree, sums) == [] == checksums.changed(tree, None)
  assert checksums.changed({**tree, 'b': np.int32(3)}, sums) == ['b']
  assert checksums.changed({'b': np.int32(2)}, sums) == ['a/kernel']


def state():
  rng = np.random.default_rng(0)
  kernel = lambda: {'a': {'kernel': jnp.asarray(rng.normal(size=(40, 90)).astype(np.float32))}}
  return TrainState(jnp.int32(7), kernel(), kernel(), (kernel(),))


def flipped(folder, count, seed):
  """Flips one bit of one file at a time; gives the file, and puts it back afterwards."""
  files = [path for path in sorted(folder.rglob('*')) if path.is_file() and path.stat().st_size]
  rng = random.Random(seed)
  for number in range(count):
    path = files[number % len(files)]
    sound = path.read_bytes()
    content = bytearray(sound)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.parent.mkdir(parents=True, exist_ok=True)  # where the last one was moved away
    path.write_bytes(bytes(content))
    yield path
    path.write_bytes(sound)


@pytest.mark.parametrize(
  'count', [40, pytest.param(1000, marks=pytest.mark.slow)], ids=['short', 'long']
)
def test_no_damaged_checkpoint_is_resumed(tmp_path, count):
  """Each is read exactly as it was written, or named; never anything else."""
  saved, position = state(), {'step': 7, 'seed': 0}
  writer = checkpoint.Checkpointer(tmp_path)
  writer.save(7, saved, position)
  writer.close()
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=DEVICE), saved)
  named = 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('mome_jax.checkpoint.resume._WAITS', ())
    for path in flipped(tmp_path / 'checkpoints/7', count, seed=0):
      reader = checkpoint.Checkpointer(tmp_path)
      try:
        restored, where = reader.restore(abstract, ml_collections.ConfigDict())
      except checkpoint.CheckpointError as error:
        assert str(tmp_path / 'checkpoints') in str(error), path
        named += 1
      else:
        assert where == position, path
        jax.tree.map(np.testing.assert_array_equal, restored, saved)
      finally:
        reader.close()
  assert count // 4 < named < count


@pytest.mark.parametrize(
  'count', [20, pytest.param(500, marks=pytest.mark.slow)], ids=['short', 'long']
)
def test_no_damaged_model_is_loaded(tmp_path, count):
  params = {'model': state().params}
  checkpoint.save_model(tmp_path / 'model', demo.get_config(), params)
  named = 0
  for path in flipped(tmp_path / 'model/params', count, seed=1):
    try:
      loaded = checkpoint.load_model(tmp_path / 'model', DEVICE)
    except checkpoint.CheckpointError as error:
      assert str(tmp_path / 'model') in str(error), path
      named += 1
    else:
      jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  assert named


def test_the_averaged_parameters_of_a_training_are_checked(tmp_path):
  checkpoint.save_description(tmp_path, demo.get_config())
  writer = checkpoint.Checkpointer(tmp_path)
  saved = state().replace(ema={'model': state().ema})
  writer.save(7, saved, {'step': 7})
  writer.close()
  assert checkpoint.load_model(tmp_path, DEVICE).step == 7
  file = tmp_path / 'checkpoints/7/data/metadata'
  values = json.loads(file.read_text())
  values['checksums']['ema']['model/a/kernel'] += 1
  file.write_text(json.dumps(values))
  with pytest.raises(checkpoint.CheckpointError, match='position in the data is not what was'):
    checkpoint.load_model(tmp_path, DEVICE)
  del values['checksum']
  file.write_text(json.dumps(values))
  with pytest.raises(checkpoint.CheckpointError, match='not what was written: model/a/kernel;'):
    checkpoint.load_model(tmp_path, DEVICE)


def test_models_without_checksums_are_read(tmp_path):
  params = {'model': state().params}
  checkpoint.save_model(tmp_path, demo.get_config(), params)
  (tmp_path / checksums.FILE).unlink()
  jax.tree.map(
    np.testing.assert_array_equal, checkpoint.load_model(tmp_path, DEVICE).params, params
  )
