import threading

import numpy as np

from input_pipeline.batches import brick_cache


class TestCache:
  def test_keeps_the_last_used_within_its_bound(self):
    reads = []

    def read(key):
      reads.append(key)
      return (np.zeros(2**18, np.uint8), np.zeros(2**18, np.uint8))  # half a MiB

    cache = brick_cache.BrickCache(read, 1)
    for key in 'abacab':
      cache((key,))
    # a and b fit; c drops b, the one not used for longest; then b drops c.
    assert [key for (key,) in reads] == ['a', 'b', 'c', 'b']

  def test_many_threads(self):
    cache = brick_cache.BrickCache(lambda key: (np.full(2**16, key[0], np.int64),), 2)
    wrong = []

    def use(seed):
      for key in np.random.default_rng(seed).integers(0, 12, 300):
        wrong.extend(v for v in cache((int(key),))[0][:3] if v != key)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert not wrong
    assert sum(a.nbytes for arrays in cache._kept.values() for a in arrays) <= 2 * 2**20
