import itertools
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.batches import dataset
from input_pipeline.batches.sampler import PipelineError
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

  def test_uneven_hosts(self, store):
    with pytest.raises(PipelineError, match='batch size 4 .* 3 hosts'):
      self.batches(store, 1, num_hosts=3)


def test_a_process_with_a_running_pipeline_ends(tiny_data):
  script = f"""
import ml_collections
from input_pipeline import bricks
from input_pipeline.batches import dataset
config = ml_collections.ConfigDict({make_config().to_dict()!r})
store = bricks.open_bricks({str(tiny_data)!r}, 'phantom')
batches = dataset.make_dataset(config, [store], {CLASSES!r}, seed=0, batch_size=4)
for _ in range(10):
  next(batches)
"""
  ends = {'': 0, 'raise SystemExit(3)': 3}
  processes = [subprocess.Popen([sys.executable, '-c', script + end]) for end in ends]
  assert [process.wait(timeout=300) for process in processes] == list(ends.values())
