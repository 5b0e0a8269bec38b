"""Saving and resuming when files are damaged, disks are full and configs have changed."""

import contextlib
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mome_jax import checkpoint
from mome_jax.state import TrainState

CONFIG = ConfigDict({'model': {'width': 4}, 'seed': 0})


def state(step, width=4):
  params = {'model': {'kernel': jnp.full((64, width), step, jnp.float32), 'bias': jnp.ones(3)}}
  moments = jax.tree.map(lambda p: p * 2, params)
  return TrainState(jnp.int32(step), params, jax.tree.map(lambda p: p + 1, params), moments)


def abstract(width=4):
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state(0, width)
  )


def save(workdir, *steps):
  checkpointer = checkpoint.Checkpointer(workdir)
  for step in steps:
    checkpointer.save(step, state(step), {'step': step, 'seed': 0})
  checkpointer.close()


@contextlib.contextmanager
def opened(workdir):
  checkpointer = checkpoint.Checkpointer(workdir)
  yield checkpointer
  checkpointer.close()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  (workdir / 'config.json').write_text(CONFIG.to_json())
  save(workdir, 3, 5)
  return workdir


def assert_state(restored, step):
  got, position = restored
  assert position == {'step': step, 'seed': 0}
  jax.tree.map(np.testing.assert_array_equal, got, state(step))


def files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


def test_whatever_file_is_truncated_no_wrong_number_is_restored(saved, tmp_path, capsys):
  newest = pathlib.Path('checkpoints/5')
  skipped = []
  for number, name in enumerate(files(saved / newest)):
    workdir = tmp_path / str(number)
    shutil.copytree(saved, workdir)
    victim = workdir / newest / name
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with opened(workdir) as checkpointer:
      restored = checkpointer.restore(abstract(), CONFIG)
      if restored[1]['step'] == 5:  # a file that restoring does not need
        assert_state(restored, 5)
        continue
      assert_state(restored, 3)
      message = capsys.readouterr().err
      assert f'{workdir / newest} is damaged' in message
      skipped.append(name)
      # Training goes on from 3 and writes 5 again.
      checkpointer.save(5, state(5), {'step': 5, 'seed': 0})
    assert (workdir / 'damaged/5').is_dir()
    with opened(workdir) as checkpointer:
      assert_state(checkpointer.restore(abstract(), CONFIG), 5)
  assert any('train' in str(name) for name in skipped)
  assert any('ema' in str(name) for name in skipped)


def test_nothing_readable_is_an_error(saved, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(saved, workdir)
  for name in files(workdir / 'checkpoints'):
    (workdir / 'checkpoints' / name).write_bytes(b'')
  with (
    opened(workdir) as checkpointer,
    pytest.raises(checkpoint.CheckpointError, match='no checkpoint in .* can be read'),
  ):
    checkpointer.restore(abstract(), CONFIG)


def test_a_changed_config_says_what_differs(saved):
  changed = ConfigDict({'model': {'width': 8}, 'seed': 0})
  with (
    opened(saved) as checkpointer,
    pytest.raises(checkpoint.CheckpointError) as caught,
  ):
    checkpointer.restore(abstract(8), changed)
  message = str(caught.value)
  assert 'Changed: model.width: 4 -> 8.' in message
  assert 'model/kernel: (64, 4) -> (64, 8)' in message
  assert (saved / 'checkpoints/5').is_dir()


def test_no_checkpoint_is_no_error(tmp_path):
  with opened(tmp_path) as checkpointer:
    assert checkpointer.restore(abstract(), CONFIG) is None


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
  """A file system of 1 MB, filled up after the first checkpoint."""
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(tmp_path)], capture_output=True
  )
  if mounted.returncode:
    pytest.skip('mounting a small file system needs root')
  try:
    save(tmp_path, 3)
    (tmp_path / 'filler').write_bytes(b'x')
    with contextlib.suppress(OSError), (tmp_path / 'filler').open('ab', buffering=0) as filler:
      while True:
        filler.write(b'x' * 4096)
    with pytest.raises(checkpoint.CheckpointError, match='checkpoints/3 is complete. Free space'):
      save(tmp_path, 5)
    (tmp_path / 'filler').unlink()
    with opened(tmp_path) as checkpointer:
      assert_state(checkpointer.restore(abstract(), CONFIG), 3)
  finally:
    subprocess.run(['umount', '-l', str(tmp_path)], check=True)
