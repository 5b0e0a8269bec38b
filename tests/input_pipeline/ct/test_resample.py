import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from input_pipeline.ct import resample

SPACINGS = st.tuples(*[st.floats(0.4, 6)] * 3)
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
SEEDS = st.integers(0, 2**32 - 1)


def centred_mm(n, spacing):
  """World position of the voxel centres, mm from the middle of the grid."""
  return (np.arange(n) - (n - 1) / 2) * spacing


def oracle(array, spacing, target, shape):
  """Gaussian and map_coordinates of scipy on the same grids."""
  factors = np.asarray(target) / spacing
  array = ndimage.gaussian_filter(array, np.maximum(factors - 1, 0) / 2, mode='nearest')
  axes = [
    centred_mm(m, f) + (n - 1) / 2 for m, f, n in zip(shape, factors, array.shape, strict=True)
  ]
  return ndimage.map_coordinates(array, np.meshgrid(*axes, indexing='ij'), order=1, mode='nearest')


@settings(deadline=None, max_examples=50)
@given(SHAPES, SPACINGS, SPACINGS, SEEDS)
def test_order_1_against_scipy(shape, spacing, target, seed):
  array = np.random.default_rng(seed).normal(size=shape)
  out = resample.resample(array, spacing, target, order=1)
  assert out.dtype == np.float32
  assert out.shape == resample.output_shape(shape, spacing, target)
  np.testing.assert_allclose(out, oracle(array, spacing, target, out.shape), atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(SHAPES, SPACINGS, SPACINGS, SEEDS)
def test_order_0_takes_a_nearest_voxel(shape, spacing, target, seed):
  index = np.stack(np.indices(shape), -1)
  out = resample.resample(index, spacing, target, order=0)
  for axis in range(3):
    old = centred_mm(shape[axis], spacing[axis])
    new = centred_mm(out.shape[axis], target[axis])
    distance = np.abs(new[:, None] - old)
    picked = np.moveaxis(out[..., axis], axis, -1).reshape(-1, len(new))
    assert (picked == picked[0]).all()
    chosen = distance[np.arange(len(new)), picked[0]]
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-5)


def test_ties_go_to_the_lower_and_the_upper_voxel_in_turn():
  # Two voxels of 1 mm in one of 2 mm, and in three of 1 mm: the centre is equally near to both.
  array = np.arange(2, dtype=np.uint8).reshape(2, 1, 1)
  assert resample.resample(array, (1, 1, 1), (2, 1, 1), order=0).ravel().tolist() == [0]
  out = resample.resample(array, (1, 1, 1), (1, 1, 1), order=0, target_shape=(3, 1, 1))
  assert out.ravel().tolist() == [0, 0, 1]
  # Centres 1.5 and 4.5 with spacings that are no binary fractions: 0.3 / 0.1 < 3.
  array = np.arange(7, dtype=np.uint8).reshape(7, 1, 1)
  out = resample.resample(array, (0.1, 1, 1), (0.3, 1, 1), order=0)
  assert out.ravel().tolist() == [1, 5]


@pytest.mark.parametrize(
  ('size', 'spacing', 'dice'),
  [(40, 1.0, 0.92), (41, 1.0, 0.89), (40, 4 / 3, 0.92), (40, 0.9, 0.91)],
)
def test_labels_lie_where_their_image_lies(size, spacing, dice):
  """Of balls, on 2 mm: the true labels there, and back, too."""
  rng = np.random.default_rng(0)
  old, new = (spacing,) * 3, (2.0,) * 3
  at = np.stack(np.meshgrid(*[centred_mm(size, spacing)] * 3, indexing='ij'), -1)
  shifts, overlaps = [], []
  for _ in range(60):
    mask = np.linalg.norm(at - rng.uniform(-5, 5, 3), axis=-1) < 7
    labels = resample.resample(mask, old, new, order=0)
    image = resample.resample(mask.astype(np.float32), old, new, order=1)
    grid = np.stack(np.meshgrid(*(centred_mm(n, 2) for n in image.shape), indexing='ij'), -1)
    labelled, seen = (np.average(grid.reshape(-1, 3), 0, part.ravel()) for part in (labels, image))
    shifts.append(labelled - seen)
    back = resample.resample(labels.astype(np.float32), new, old, order=1, target_shape=mask.shape)
    overlaps.append(2 * (mask & (back > 0.5)).sum() / (mask.sum() + (back > 0.5).sum()))
  assert np.abs(np.mean(shifts, 0)).max() < 0.06
  assert np.mean(overlaps) > dice


@pytest.mark.parametrize('target', [(0.5, 0.5, 0.5), (0.8, 1.3, 2.2), (3, 3, 3)])
def test_ramps_are_exact_inside(target):
  shape, spacing = (40, 36, 32), (0.8, 1.0, 1.5)
  world = np.meshgrid(*map(centred_mm, shape, spacing), indexing='ij')
  slope = (2.0, -3.0, 5.0)
  out = resample.resample(np.tensordot(slope, world, 1), spacing, target, order=1)
  world = np.meshgrid(*map(centred_mm, out.shape, target), indexing='ij')
  # The Gaussian, cut at 4 sigma <= 5.5 old voxels, sees repeated edges beyond this distance.
  inside = np.all([np.abs(w) < 7 for w in world], axis=0)
  assert inside.sum() > 50
  np.testing.assert_allclose(out[inside], np.tensordot(slope, world, 1)[inside], atol=1e-4)


def test_centres_are_aligned_by_hand():
  # 2 voxels of 2 mm (centres -1, 1) to 4 of 1 mm (-1.5, -0.5, 0.5, 1.5), edges repeated.
  array = np.array([0.0, 4.0]).reshape(2, 1, 1)
  out = resample.resample(array, (2, 1, 1), (1, 1, 1), order=1)
  np.testing.assert_array_equal(out.ravel(), [0, 1, 3, 4])
  lower, upper, weight = resample.axis_weights(2, 2, 4, 1)
  assert lower.tolist() == [0, 0, 0, 0]
  assert upper.tolist() == [1, 1, 1, 1]
  np.testing.assert_array_equal(weight, np.float32([0, 0.25, 0.75, 1]))


def test_target_shape_keeps_the_spacing():
  # A larger grid of the same spacing and centre: the input with its edges repeated.
  array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  out = resample.resample(array, (1, 2, 3), (1, 2, 3), order=1, target_shape=(5, 4, 7))
  expected = np.pad(array, ((1, 1), (0, 0), (1, 1)), mode='edge')
  np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_output_shape_by_hand():
  assert resample.output_shape((512, 512, 280), (0.78, 0.78, 1.25), (1.5, 1.5, 1.5)) == (
    266,
    266,
    233,
  )
  assert resample.output_shape((1, 3, 2), (0.1, 1, 1), (5, 1, 1.5)) == (1, 3, 1)


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0.3, 6), st.integers(1, 30), st.floats(0.3, 6))
def test_axis_weights_are_an_interpolation(n_in, spacing, n_out, target):
  lower, upper, weight = resample.axis_weights(n_in, spacing, n_out, target)
  assert weight.dtype == np.float32
  assert (lower >= 0).all() and (upper < n_in).all() and (np.diff(lower) >= 0).all()
  assert (upper == np.minimum(lower + 1, n_in - 1)).all()
  old, new = centred_mm(n_in, spacing), centred_mm(n_out, target)
  np.testing.assert_allclose(
    old[lower] * (1 - weight) + old[upper] * weight, np.clip(new, old[0], old[-1]), atol=1e-4
  )


def test_channels_are_independent():
  array = np.random.default_rng(0).normal(size=(6, 7, 8, 3)).astype(np.float32)
  for order in (0, 1):
    args = ((1.0, 2.0, 3.0), (1.7, 1.1, 2.0))
    out = resample.resample(array, *args, order=order)
    for c in range(3):
      single = resample.resample(array[..., c], *args, order=order)
      np.testing.assert_allclose(out[..., c], single, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(SHAPES, SPACINGS, SPACINGS, SEEDS, st.sampled_from([0, 1, 2]))
def test_flipping_an_axis_flips_the_result(shape, spacing, target, seed, axis):
  array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  out = resample.resample(array, spacing, target, order=1)
  flipped = resample.resample(np.flip(array, axis), spacing, target, order=1)
  np.testing.assert_allclose(flipped, np.flip(out, axis), atol=1e-5)


def test_shrinking_does_not_alias():
  # Every fourth voxel is bright. New centres lie at 1.5, 5.5, ...: plain interpolation sees none.
  array = np.zeros((64, 1, 1))
  array[::4] = 1
  out = resample.resample(array, (1, 1, 1), (4, 1, 1), order=1)
  np.testing.assert_allclose(out[2:-2], 0.25, atol=0.05)


@pytest.mark.parametrize('spacing', [(0.8, 0.8, 1.25), (0.7, 0.7, 3.0), (1.0, 1.0, 1.0)])
def test_round_trip_of_a_mask(spacing):
  shape = tuple(round(60 / s) for s in spacing)
  x, y, z = np.meshgrid(*map(centred_mm, shape, spacing), indexing='ij')
  mask = (x / 24) ** 2 + (y / 18) ** 2 + (z / 22) ** 2 < 1  # 40 ml
  coarse = resample.resample(mask.astype(np.float32), spacing, (1.5,) * 3, order=1)
  back = resample.resample(coarse, (1.5,) * 3, spacing, order=1, target_shape=shape) > 0.5
  assert 2 * (mask & back).sum() / (mask.sum() + back.sum()) > 0.99


def test_labels_keep_values_and_dtype():
  labels = np.random.default_rng(0).choice(np.uint8([0, 27, 201]), (9, 8, 7))
  out = resample.resample(labels, (1, 1, 1), (0.7, 1.9, 1.3), order=0)
  assert out.dtype == np.uint8
  assert set(np.unique(out)) <= {0, 27, 201}
  np.testing.assert_array_equal(resample.resample(labels, (1, 1, 2), (1, 1, 2), order=0), labels)


@pytest.mark.parametrize(
  ('shape', 'spacing', 'order', 'message'),
  [
    ((3, 3, 3), (1, 1, 1), 3, 'order 3'),
    ((3, 3), (1, 1, 1), 1, r'shape \(3, 3\)'),
    ((3, 0, 3), (1, 1, 1), 1, r'shape \(3, 0, 3\)'),
    ((3, 3, 3), (1, 0, 1), 1, r'spacing \(1, 0, 1\)'),
    ((3, 3, 3), (1, 1), 1, 'spacing'),
    ((3, 3, 3), (1, np.nan, 1), 0, 'nan'),
  ],
)
def test_bad_arguments(shape, spacing, order, message):
  with pytest.raises(ValueError, match=message):
    resample.resample(np.zeros(shape), spacing, spacing, order=order)
