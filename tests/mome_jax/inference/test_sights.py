"""What is kept of windows: the same arrays again, and never more than the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax.inference.progress import Progress
from mome_jax.inference.sights import Sights
from mome_jax.inference.sliding_window import Tiling, sliding_window
from mome_jax.models.mome import Sight

SIZE = 4 * (10 + 2 + 30)  # bytes of a sight


def see(windows):
  value = jnp.float32(windows.sum())
  return Sight([jnp.full((1, 10), value)], jnp.full((1, 2), value), [jnp.full((1, 30), value)], {})


def look(sights, scan, number):
  """Sees window `number` of a scan; whether it was kept."""
  before = sights.reused
  with sights.scan(scan):
    sight = sights.of(np.full((1, 2, 2, 2, 1), number, np.float32), see)
  expected = see(np.full(8, number, np.float32))
  for a, b in zip(jax.tree.leaves(sight), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)
  return sights.reused > before


def test_what_was_seen_is_there_again():
  sights = Sights(10 * SIZE)
  assert [look(sights, 'a', n) for n in (1, 2, 1, 2, 3)] == [False, False, True, True, False]
  assert not look(sights, 'b', 1)  # kept for each scan of its own, so that it can be forgotten
  sights.forget('a')
  assert not look(sights, 'a', 1) and look(sights, 'b', 1)


def test_a_scan_that_does_not_fit_keeps_its_first_windows():
  sights = Sights(2 * SIZE)
  assert [look(sights, 'a', n) for n in (1, 2, 3, 1, 2, 3)] == [False] * 3 + [True, True, False]


def test_the_scan_used_longest_ago_goes_first():
  sights = Sights(3 * SIZE)
  for scan in ('a', 'b', 'c', 'a'):
    look(sights, scan, 1)
  assert not look(sights, 'd', 1)  # in the place of b
  assert look(sights, 'a', 1) and look(sights, 'c', 1)
  assert not look(sights, 'b', 1)  # in the place of d
  assert Sights(0) and not any(look(Sights(0), 'a', 1) for _ in range(2))


def of_one_class(batch):
  """The image as logits (B, 1, *window)."""
  return np.moveaxis(batch, -1, 1)


def test_progress_counts_windows_and_can_stop():
  image = np.ones((8, 4, 4, 1), np.float32)
  image[:2] = 0  # air: no window looks there
  told = []
  progress = Progress(of_one_class, lambda *counts: told.append(counts))
  list(sliding_window(None, image, Tiling((2, 4, 4), 0.0, 2), watch=progress))
  assert told == [(0, 3), (1, 3), (2, 3)]

  def stop(done, _):
    if done:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    list(sliding_window(None, image, Tiling((2, 4, 4)), watch=Progress(of_one_class, stop)))


def test_progress_passes_on_to_another_watch():
  class Other:
    def begin(self, windows):
      self.windows = windows

    def predict(self, batch, corners):
      return of_one_class(batch) + len(corners)

  other = Other()
  image = np.ones((4, 4, 4, 1), np.float32)
  [slab] = sliding_window(
    None, image, Tiling((4, 4, 4)), watch=Progress(other, lambda done, total: None)
  )
  assert other.windows.shape == (4, 4, 4) and (slab == 2).all()
