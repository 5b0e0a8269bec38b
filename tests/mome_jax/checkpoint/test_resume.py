"""Saving and resuming when files are damaged, disks are full and configs have changed."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint._src.path import atomicity, atomicity_defaults

from mome_jax import checkpoint
from mome_jax.checkpoint import resume
from mome_jax.training.state import TrainState

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
  with opened(workdir) as checkpointer:
    for step in steps:
      checkpointer.save(step, state(step), {'step': step, 'seed': 0})


def opened(workdir):
  return contextlib.closing(checkpoint.Checkpointer(workdir))


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


def test_a_checkpoint_can_be_rated_once_it_is_written(saved, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(saved, workdir)
  with opened(workdir) as checkpointer:
    checkpointer.rate(5, {'waited': 1}, None)
    restored, position = checkpointer.restore(abstract(), CONFIG)
    assert position == {'step': 5, 'seed': 0, 'validation': {'waited': 1}}
    assert_state((restored, {'step': 5, 'seed': 0}), 5)
    checkpointer.rate(3, {}, 0.5)
    for step in (7, 9):  # of which two are kept, and the best
      checkpointer.save(step, state(step), {'step': step, 'seed': 0})
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['3', '7', '9']
  assert checkpoint.locate(workdir, 'best').step == 3


def files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


def test_a_process_that_is_lost_in_a_save_is_no_full_disk(tmp_path, monkeypatch):
  """Whoever waits for it there was told to free space."""
  text = 'UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was'

  def lost(*_, **__):
    raise jax.errors.JaxRuntimeError(text)

  with opened(tmp_path) as checkpointer:
    monkeypatch.setattr(checkpointer._manager, 'save', lost)
    with pytest.raises(checkpoint.CheckpointError):  # alone: of the storage
      checkpointer.save(1, state(1), {'step': 1})
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match='coordination service'):
      checkpointer.save(1, state(1), {'step': 1})
    monkeypatch.undo()


def test_no_save_asks_whether_the_run_is_to_end(tmp_path, monkeypatch):
  """JAX would then have the processes agree on a number that training never comes to."""
  asked = []
  name = 'reached_preemption_sync_point'
  monkeypatch.setattr(multihost_utils, name, lambda step: asked.append(step) or False)
  save(tmp_path, 5000, 5001)
  assert asked == []


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


def test_a_workdir_that_is_no_folder(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(checkpoint.CheckpointError, match='checkpoints: no folder to write'):
    checkpoint.Checkpointer(tmp_path / 'run')


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


# ---------------------------------------------------------------------------- what is no damage
NO_DAMAGE = {
  'memory': MemoryError(),
  'device memory': RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes'),
  'permission': PermissionError(13, 'Permission denied', 'manifest.ocdbt'),
  'permission of TensorStore': ValueError('PERMISSION_DENIED: Error opening "zarr" driver'),
  'network': ValueError('UNAVAILABLE: Error opening "zarr" driver: connection reset'),
  'time': TimeoutError('timed out'),
  'unknown': RuntimeError('something new'),
}


@pytest.mark.parametrize('error', NO_DAMAGE.values(), ids=NO_DAMAGE)
def test_what_proves_no_damage_moves_nothing(saved, tmp_path, monkeypatch, error):
  workdir = tmp_path / 'run'
  shutil.copytree(saved, workdir)
  waits = []
  monkeypatch.setattr(resume.time, 'sleep', waits.append)
  with opened(workdir) as checkpointer:

    def read(step, abstract):
      raise error

    monkeypatch.setattr(checkpointer, '_read', read)
    with pytest.raises(checkpoint.CheckpointError, match='no sign of damage'):
      checkpointer.restore(abstract(), CONFIG)
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['3', '5']
  assert not (workdir / 'damaged').exists()
  passing = error in (NO_DAMAGE['network'], NO_DAMAGE['time'], NO_DAMAGE['unknown'])
  assert bool(waits) == passing  # no memory and no permission do not pass


def test_a_passing_error_is_tried_again(saved, monkeypatch, capsys):
  waits = []
  monkeypatch.setattr(resume.time, 'sleep', waits.append)
  with opened(saved) as checkpointer:
    read, fails = checkpointer._read, [ConnectionError('reset'), ValueError('UNAVAILABLE: later')]

    def unsteady(step, abstract):
      if fails:
        raise fails.pop()
      return read(step, abstract)

    monkeypatch.setattr(checkpointer, '_read', unsteady)
    assert_state(checkpointer.restore(abstract(), CONFIG), 5)
  assert len(waits) == 2
  assert 'checkpoints/5 cannot be read (UNAVAILABLE: later); next try in' in capsys.readouterr().err


def test_another_optimizer_is_told_and_moves_nothing(saved):
  """As after an update of this program: the parameters fit, the moments do not."""
  other = abstract()
  moments = {'mu': other.opt_state, 'count': other.step}
  with (
    opened(saved) as checkpointer,
    pytest.raises(checkpoint.CheckpointError) as caught,
  ):
    checkpointer.restore(other.replace(opt_state=moments), CONFIG)
  message = str(caught.value)
  assert 'does not fit this config' in message
  assert 'Optimizer: opt_state/count: absent -> (), ' in message
  assert {path.name for path in (saved / 'checkpoints').iterdir()} == {'3', '5'}


def test_a_part_of_the_optimizer_without_arrays_is_told_too(tmp_path):
  params = {'model': {'kernel': jnp.ones((64, 4))}}
  chains = [optax.chain(optax.adam(1e-3), *[optax.scale(0.1)] * count) for count in (1, 2)]
  old, new = (TrainState(jnp.int32(3), params, params, chain.init(params)) for chain in chains)
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save(3, old, {'step': 3, 'seed': 0})
  checkpointer.close()
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  with opened(tmp_path) as checkpointer:
    with pytest.raises(checkpoint.CheckpointError, match='Optimizer: opt_state/2: absent -> empty'):
      checkpointer.restore(jax.tree.map(placed, new), CONFIG)
    got, _ = checkpointer.restore(jax.tree.map(placed, old), CONFIG)
  jax.tree.map(np.testing.assert_array_equal, got, old)


# ---------------------------------------------------------------------------- never from 0 unasked
def test_damaged_checkpoints_are_not_forgotten(saved, tmp_path):
  """No start at 0, which would empty the log, where only damaged ones are left."""
  workdir = tmp_path / 'run'
  (workdir / 'damaged').mkdir(parents=True)
  with opened(workdir) as checkpointer:
    assert checkpointer.restore(abstract(), CONFIG) is None  # an empty folder is no checkpoint
  shutil.copytree(saved / 'checkpoints/5', workdir / 'damaged/5')
  with (
    opened(workdir) as checkpointer,
    pytest.raises(checkpoint.CheckpointError, match='no checkpoint but damaged ones in .*/damaged'),
  ):
    checkpointer.restore(abstract(), CONFIG)


def test_steps_of_an_object_store_count_when_finished(saved, tmp_path, monkeypatch):
  """There, an unfinished checkpoint has its final name and lacks the mark of success."""
  workdir = tmp_path / 'run'
  shutil.copytree(saved, workdir)
  shutil.copytree(saved / 'checkpoints/5', workdir / 'checkpoints/9')
  (workdir / 'checkpoints/9/commit_success.txt').unlink(missing_ok=True)
  store = lambda path, **_: atomicity.CommitFileTemporaryPath
  monkeypatch.setattr(atomicity_defaults, 'get_default_temporary_path_class', store)
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  model = checkpoint.load_model(workdir, where)
  assert model.step == 5
  jax.tree.map(np.testing.assert_array_equal, model.params, state(5).ema)


def test_no_clock_decides_which_checkpoint_is_newest(saved, tmp_path):
  """Nor which are kept: of hosts that share a disk, some clocks are wrong."""
  workdir = tmp_path / 'run'
  shutil.copytree(saved, workdir)
  for step, seconds in ((3, 2**32), (5, 1)):
    folder = workdir / f'checkpoints/{step}'
    file = folder / '_CHECKPOINT_METADATA'
    times = dict.fromkeys(('init_timestamp_nsecs', 'commit_timestamp_nsecs'), seconds * 10**9)
    file.write_text(json.dumps(json.loads(file.read_text()) | times))
    for path in (*folder.rglob('*'), folder):
      os.utime(path, (seconds, seconds))
  with opened(workdir) as checkpointer:
    assert_state(checkpointer.restore(abstract(), CONFIG), 5)
    checkpointer.save(7, state(7), {'step': 7, 'seed': 0})
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['5', '7']


# ---------------------------------------------------------------------------- where a run began
def test_where_a_run_began_comes_back(tmp_path, capsys):
  with opened(tmp_path) as checkpointer:
    assert checkpointer.load_start(abstract()) is None
    assert 'will not be logged' in capsys.readouterr().err
    for step in (1, 2):  # a start again in the same folder
      checkpointer.save_start(state(step).params)
  with opened(tmp_path) as checkpointer:
    start = checkpointer.load_start(abstract())
  jax.tree.map(np.testing.assert_array_equal, start, state(2).params)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
  """By the scores of those that have one: of 6, 12 and 14 it is 12, though 14 is newer."""
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=2)
  for step, score in ((6, 0.5), (10, None), (12, 0.7), (14, 0.6), (16, None), (18, None)):
    checkpointer.save(step, state(step), {'step': step, 'seed': 0}, score)
  checkpointer.close()
  folder = tmp_path / 'checkpoints'
  assert sorted(path.name for path in folder.iterdir()) == ['12', '16', '18']
  (tmp_path / 'config.json').write_text('{}')
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  steps = {choice: checkpoint.load_model(tmp_path, where, choice) for choice in ('last', 'best')}
  assert {choice: model.step for choice, model in steps.items()} == {'last': 18, 'best': 12}
  np.testing.assert_array_equal(steps['best'].params['model']['kernel'], 13)
  assert checkpoint.load_model(tmp_path, where).step == 18
  (tmp_path / 'config.json').write_text('{"evaluation": {"checkpoint": "best"}}')
  assert checkpoint.load_model(tmp_path, where).step == 12  # as the run was told
  assert checkpoint.load_model(folder / '16', where).step == 16
  with opened(tmp_path) as checkpointer:  # training goes on from the newest
    assert checkpointer.restore(abstract(), CONFIG)[1]['step'] == 18


def test_no_best_checkpoint_is_told(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint was chosen as the best'):
    checkpoint.load_model(tmp_path / 'run', where, 'best')


def test_where_no_scan_set_aside_shows_a_class_the_newest_is_the_best(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  config = {'validation': {'every': 10, 'cases': 2}}
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  with pytest.warns(UserWarning, match='none was measured yet, or no scan set aside'):
    best = checkpoint.locate(tmp_path / 'run', 'best')
  assert best.step == checkpoint.locate(tmp_path / 'run').step
