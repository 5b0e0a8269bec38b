"""Sliding window: properties that hold for every shape."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mome_jax.inference import slabs, sliding_window
from mome_jax.inference.sliding_window import Tiling

sizes = st.integers(1, 40)


@given(size=st.integers(5, 200), window=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_windows_cover_the_axis(size, window, overlap):
  size = max(size, window)
  starts = sliding_window.window_starts(size, window, overlap)
  covered = np.zeros(size, bool)
  for start in starts:
    assert 0 <= start <= size - window
    covered[start : start + window] = True
  assert covered.all()
  assert starts == sorted(set(starts))


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(sizes, sizes, sizes), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
       batch_size=st.integers(1, 5))  # fmt: skip
def test_a_voxelwise_function_is_reproduced(shape, overlap, batch_size):
  image = np.random.default_rng(0).uniform(0.1, 1, (*shape, 2)).astype(np.float32)
  calls = []

  def predict(windows):
    calls.append(windows.shape)
    return np.moveaxis(np.concatenate([windows * 3 - 1, windows[..., :1]], -1), -1, 1)

  tiling = Tiling((8, 12, 16), overlap, batch_size)
  parts = sliding_window.sliding_window(predict, image, tiling)
  result = np.concatenate([slab.copy() for slab in parts], 1)
  np.testing.assert_allclose(result, predict(image[None])[0], atol=1e-5)
  assert set(calls[:-1]) == {(batch_size, 8, 12, 16, 2)}  # one shape: nothing compiles twice


def test_air_is_skipped_and_becomes_background():
  image = np.zeros((40, 16, 16, 1), np.float32)
  image[24:30, 4:8, 4:8] = 1
  seen = []

  def predict(windows):
    seen.append(windows.any())
    return np.moveaxis(windows * 10 - 5, -1, 1)

  result = np.concatenate(
    [s.copy() for s in sliding_window.sliding_window(predict, image, Tiling((8, 8, 8), 0.0))], 1
  )
  assert all(seen)
  assert len(seen) == 1
  np.testing.assert_array_equal(result[0] > 0, image[..., 0] > 0)
  assert (result[:, :24] == sliding_window.BACKGROUND).all()


def test_memory_is_bounded_by_the_window_depth():
  image = np.ones((200, 8, 8, 1), np.float32)
  predict = lambda windows: np.moveaxis(windows, -1, 1)
  slabs = sliding_window.sliding_window(predict, image, Tiling((16, 8, 8)))
  longest = max(slab.shape[1] for slab in slabs)
  assert longest <= 16


def test_few_maps_are_held_at_a_time():
  """Whatever K is: one window depth of K maps, and some maps of a single class."""
  shape, window, classes = (48, 24, 24), (16, 16, 16), 48
  image = np.ones((*shape, 1), np.float32)
  weights = np.linspace(-1, 1, classes, dtype=np.float32)[:, None, None, None]
  depth_of_maps = 4 * window[0] * shape[1] * shape[2] * classes
  window_of_maps = 4 * np.prod(window) * classes
  target = (96, 48, 48)

  def consume():
    predict = lambda windows: windows[..., 0][:, None] * weights
    coarse = sliding_window.sliding_window(predict, image, Tiling(window))
    for slab in slabs.resample_slabs(coarse, shape, (2, 2, 2), target, (1, 1, 1)):
      for k in range(classes):
        slab.positive(k)

  tracemalloc.start()
  consume()
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # Two windows of logits are on their way; maps of one class: coarse, at most three fine ones.
  single = 4 * window[0] * (24 * 24 + 3 * 2 * 48 * 48)
  plane = depth_of_maps / window[0]
  assert depth_of_maps < peak < 1.05 * (depth_of_maps + plane + 2 * window_of_maps + single)


def test_gaussian_weights_are_symmetric_with_a_floor():
  weights = sliding_window.gaussian_weights((8, 12, 16))
  np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])
  assert weights.min() == pytest.approx(1e-3)
  assert weights.max() <= 1
