import itertools
import multiprocessing
import shutil
import subprocess
import sys

import numpy as np
import pytest
from without import without

from input_pipeline import bricks
from input_pipeline.batches import dataset
from input_pipeline.batches.sampler import PatchSampler, PipelineError
from tests.input_pipeline.batches.settings import CLASSES, PATCH, make_config


class TestDataset:
  def batches(self, store, steps, **options):
    config = options.pop('config', make_config())
    options = {'seed': 5, 'batch_size': 4, **options}
    return list(itertools.islice(dataset.make_dataset(config, [store], CLASSES, **options), steps))

  def assert_equal(self, a, b):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])

  def test_shapes_and_types(self, store):
    (batch,) = self.batches(store, 1)
    expected = {
      'image': ((4, *PATCH, 2), 'float32'),
      'label': ((4, *PATCH), 'uint8'),
      'supervised': ((4, 6), 'bool'),
      'absent': ((4, 6), 'bool'),
      'frame': ((4, 4), 'float32'),
      'slice_range': ((4, 6, 2), 'float32'),
    }
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == expected

  def test_same_seed_same_batches_whatever_runs_in_parallel(self, store):
    one = self.batches(store, 3, config=make_config(num_parallel=1, cache_mb=0))
    two = self.batches(store, 3, config=make_config(num_parallel=4))
    for a, b in zip(one, two, strict=True):
      self.assert_equal(a, b)
    (other,) = self.batches(store, 1, seed=6)
    assert not np.array_equal(one[0]['image'], other['image'])
    assert not np.array_equal(one[0]['image'], one[1]['image'])

  def test_resumes_where_it_stopped(self, store):
    through = self.batches(store, 5)
    for a, b in zip(self.batches(store, 2, start_step=3), through[3:], strict=True):
      self.assert_equal(a, b)

  @pytest.mark.parametrize('hosts', [2, 4])
  def test_hosts_share_the_same_global_batch(self, store, hosts):
    whole = self.batches(store, 2, start_step=1)
    parts = [
      self.batches(store, 2, start_step=1, host=host, num_hosts=hosts) for host in range(hosts)
    ]
    for step, batch in enumerate(whole):
      joined = {k: np.concatenate([part[step][k] for part in parts]) for k in batch}
      self.assert_equal(joined, batch)

  def test_processes_of_grain_make_the_batches_of_tf_data(self, store):
    options = {'start_step': 3, 'host': 1, 'num_hosts': 2}
    threads = self.batches(store, 3, config=make_config(loader='tf.data'), **options)
    # Three processes that share batches of two rows: each makes some of them.
    config = make_config(loader='grain', num_parallel=3)
    for a, b in zip(self.batches(store, 3, config=config, **options), threads, strict=True):
      self.assert_equal(a, b)
      assert {k: v.dtype for k, v in a.items()} == {k: v.dtype for k, v in b.items()}

  def test_what_processes_read_is_counted(self, store):
    config = make_config(loader='grain', num_parallel=1)
    batches = dataset.make_dataset(config, [store], CLASSES, seed=5, batch_size=2)
    sampler = PatchSampler(config, [store], CLASSES)
    for step in range(2):
      next(batches)
      for row in range(2):
        sampler.sample(2 * step + row, 5)
      assert batches.voxels_read == sampler.voxels_read > 0
    batches.close()

  def test_a_process_that_is_killed_is_told_of(self, store):
    config = make_config(loader='grain', num_parallel=1)
    batches = dataset.make_dataset(config, [store], CLASSES, seed=5, batch_size=2)
    next(batches)
    [worker] = [p for p in multiprocessing.active_children() if 'grain' in p.name]
    worker.kill()
    with pytest.raises(PipelineError, match='ended from outside .*lower data.num_parallel'):
      for _ in range(1000):  # those made before
        next(batches)

  def test_shared_memory_that_is_too_small(self, store):
    config = make_config(loader='grain', num_parallel=10**9)
    with pytest.raises(PipelineError, match='/dev/shm: .* MiB are free.*lower data.num_parallel'):
      self.batches(store, 1, config=config)

  def test_an_unknown_loader(self, store):
    with pytest.raises(PipelineError, match="data.loader is 'tf_data'; did you mean tf.data?"):
      self.batches(store, 1, config=make_config(loader='tf_data'))

  @pytest.mark.parametrize('loader', ['tf.data', 'grain'])
  def test_damaged_bricks_are_named_in_one_line(self, tiny_data, tmp_path, loader):
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    [shard] = tmp_path.rglob('phantom-train.array_record*')
    content = np.fromfile(shard, np.uint8)
    content[len(content) // 4 : -len(content) // 4] ^= 0x55
    content.tofile(shard)
    store = bricks.open_bricks(tmp_path, 'phantom')
    config = make_config(loader=loader, cache_mb=0, num_parallel=1, spacing=store.spacing)
    with pytest.raises(bricks.NotPreparedError, match='phantom.*: damaged, or cannot be read'):
      self.batches(store, 20, config=config)

  def test_uneven_hosts(self, store):
    with pytest.raises(PipelineError, match='batch size 4 .* 3 hosts'):
      self.batches(store, 1, num_hosts=3)


def test_without_tensorflow_grain_is_chosen(tmp_path):
  script = """
from input_pipeline.batches import dataset
print(dataset.choose_loader('auto'), dataset.installed_loaders())
dataset.choose_loader('tf.data')
"""
  environment = without('tensorflow', tmp_path)
  process = subprocess.run(
    [sys.executable, '-c', script], env=environment, capture_output=True, text=True
  )
  assert process.stdout == "grain ['grain']\n"
  assert process.stderr.endswith(
    "data.loader is 'tf.data', and tensorflow is not installed; pip install tensorflow, or set "
    '--config.data.loader=grain, which makes the same batches\n'
  )
  assert dataset.choose_loader('auto') == 'tf.data'


@pytest.mark.parametrize('loader', ['auto', 'grain'])
def test_without_any_loader_both_packages_are_named(tmp_path, loader):
  script = f"""
from input_pipeline.batches import dataset
dataset.choose_loader({loader!r})
"""
  environment = without('tensorflow grain', tmp_path)
  process = subprocess.run(
    [sys.executable, '-c', script], env=environment, capture_output=True, text=True
  )
  assert process.stderr.endswith(
    'PipelineError: nothing that makes batches is installed; pip install tensorflow or grain\n'
  )


@pytest.mark.parametrize('loader', ['tf.data', 'grain'])
def test_a_process_with_a_running_pipeline_ends(tiny_data, loader):
  script = f"""
import ml_collections
from input_pipeline import bricks
from input_pipeline.batches import dataset
config = ml_collections.ConfigDict({make_config(loader=loader).to_dict()!r})
store = bricks.open_bricks({str(tiny_data)!r}, 'phantom')
batches = dataset.make_dataset(config, [store], {CLASSES!r}, seed=0, batch_size=4)
for _ in range(10):
  next(batches)
"""
  ends = {'': 0, 'raise SystemExit(3)': 3}
  processes = [subprocess.Popen([sys.executable, '-c', script + end]) for end in ends]
  assert [process.wait(timeout=300) for process in processes] == list(ends.values())
