import pickle
import threading

import numpy as np

from input_pipeline.batches import brick_cache


def read_quarters(numbers):
  return [(np.full(2**16, number, np.int64),) for number in numbers]  # half a MiB each


class TestCache:
  def test_keeps_the_last_used_within_its_bound(self):
    reads = []

    def read(numbers):
      reads.extend(numbers)
      return [(np.zeros(2**18, np.uint8), np.zeros(2**18, np.uint8)) for _ in numbers]

    cache = brick_cache.BrickCache([read], 1)
    for number in (0, 1, 0, 2, 0, 1):
      cache.get(0, [number])
    # 0 and 1 fit; 2 drops 1, the one not used for longest; then 1 drops 2.
    assert reads == [0, 1, 2, 1]

  def test_what_is_missing_is_read_at_once_and_given_in_order(self):
    requests = []

    def read(numbers):
      requests.append(list(numbers))
      return read_quarters(numbers)

    cache = brick_cache.BrickCache([read_quarters, read], 8)
    cache.get(1, [3])
    bricks = cache.get(1, [5, 3, 4, 5])
    assert [int(array[0]) for (array,) in bricks] == [5, 3, 4, 5]
    assert requests == [[3], [5, 4]]
    assert cache.get(1, []) == []
    assert cache.voxels_read == 3 * 2**16
    cache.get(0, [3])  # of another store
    assert cache.voxels_read == 4 * 2**16 and len(requests) == 2

  def test_another_process_begins_empty(self):
    cache = brick_cache.BrickCache([read_quarters], 2)
    cache.get(0, [1, 2])
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.voxels_read == 0
    assert copy.get(0, [2])[0][0][0] == 2

  def test_many_threads(self):
    cache = brick_cache.BrickCache([read_quarters], 2)
    wrong = []

    def use(seed):
      for number in np.random.default_rng(seed).integers(0, 12, 300):
        wrong.extend(v for v in cache.get(0, [int(number)])[0][0][:3] if v != number)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert not wrong
    assert sum(a.nbytes for arrays in cache._kept.values() for a in arrays) <= 2 * 2**20
