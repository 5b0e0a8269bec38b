"""Resampling of slabs: the same as of the whole, for every shape."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.ct import resample
from mome_jax.inference import slabs


@settings(max_examples=40, deadline=None)
@given(
  shape=st.tuples(*[st.integers(2, 20)] * 3),
  target=st.tuples(*[st.integers(1, 40)] * 3),
  pieces=st.integers(1, 6),
  max_bytes=st.sampled_from([1, 5000, 1 << 20]),
  level=st.sampled_from([-3.0, 0.0, 1.0]),
)
def test_slabwise_resampling_equals_the_whole(shape, target, pieces, max_bytes, level):
  rng = np.random.default_rng(0)
  maps = rng.normal(level, 1, size=(*shape, 3)).astype(np.float32)
  spacing, target_spacing = (
    (4.0, 4.0, 3.0),
    tuple(4.0 * n / m for n, m in zip(shape, target, strict=True)),
  )
  expected = maps
  for axis in range(3):
    lower, upper, w = resample.axis_weights(
      shape[axis], spacing[axis], target[axis], target_spacing[axis]
    )
    w = w.reshape([-1 if a == axis else 1 for a in range(4)])
    expected = np.take(expected, lower, axis) * (1 - w) + np.take(expected, upper, axis) * w

  def overwritten():
    for slab in np.array_split(np.moveaxis(maps, -1, 0), min(pieces, shape[0]), 1):
      buffer = slab.copy()
      yield buffer
      buffer[:] = np.nan  # as the sliding window does

  got, done = np.empty_like(expected), 0
  for slab in slabs.resample_slabs(
    overwritten(), shape, spacing, target, target_spacing, max_bytes=max_bytes
  ):
    assert slab.planes.start == done
    assert slab.shape == (slab.planes.stop - done, *target[1:])
    done = slab.planes.stop
    for k in range(3):
      whole = got[slab.planes, ..., k] = slab.logits(k)
      inside = np.zeros(slab.shape, bool)
      if (part := slab.positive(k)) is not None:
        box, values = part
        np.testing.assert_allclose(values, whole[box], atol=1e-5)
        inside[box] = values > 0
      np.testing.assert_array_equal(inside, whole > 0)
  assert done == target[0]
  np.testing.assert_allclose(got, expected, atol=1e-5)
