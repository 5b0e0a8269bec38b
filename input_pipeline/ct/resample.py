"""Spacing changes of images and label maps.

Grids share their centre, not their first voxel, and keep their spacing exactly: n voxels of s mm
become round(n * s / t) voxels of t mm. Voxel i of the new grid lies at the old index
(i - (m - 1) / 2) * t / s + (n - 1) / 2; beyond the outermost centres the edge value is repeated.
The map is separable: one axis after the other.
"""

import itertools
from collections.abc import Sequence

import numpy as np


def output_shape(
  shape: Sequence[int],
  spacing: Sequence[float] | np.ndarray,
  target_spacing: Sequence[float] | np.ndarray,
) -> tuple[int, ...]:
  """Size of a grid after resampling, voxels: max(1, round(n * s / t)) along each axis."""
  return tuple(
    max(1, round(float(n * s / t))) for n, s, t in zip(shape, spacing, target_spacing, strict=True)
  )


def axis_weights(
  n_in: int, spacing: float, n_out: int, target_spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Linear interpolation along one axis: out = (1 - w) * in[lower] + w * in[upper].

  Args:
    n_in: voxels of the old grid.
    spacing: of the old grid, mm.
    n_out: voxels of the new grid, which has the same centre.
    target_spacing: of the new grid, mm.

  Returns:
    lower: (n_out,) int64, not decreasing.
    upper: (n_out,) int64, min(lower + 1, n_in - 1).
    weight: (n_out,) float32 in [0, 1], of the upper voxel.
  """
  index = _indices(n_in, spacing, n_out, target_spacing)
  lower = np.minimum(index.astype(np.int64), max(n_in - 2, 0))
  return lower, np.minimum(lower + 1, n_in - 1), (index - lower).astype(np.float32)


def resample(
  array: np.ndarray,
  spacing: Sequence[float] | np.ndarray,
  target_spacing: Sequence[float] | np.ndarray,
  *,
  order: int,
  target_shape: Sequence[int] | None = None,
) -> np.ndarray:
  """Changes the spacing of an image or a label map.

  Order 1 is trilinear; an axis that shrinks by a factor f is first smoothed with a Gaussian of
  sigma (f - 1) / 2 old voxels, so that detail the new grid cannot hold does not alias. Order 0
  takes the nearest voxel, without smoothing; where several are equally near (of 1 mm voxels in
  2 mm, all of them), what most of these hold, and else of the two along an axis the lower and the
  upper in turn, so that labels do not move against their image.

  Args:
    array: (D, H, W) or (D, H, W, C).
    spacing: (3,) mm of the array.
    target_spacing: (3,) mm of the result.
    order: 1 for images and scores, 0 for labels.
    target_shape: (3,) of the result; default `output_shape`.

  Returns:
    (D', H', W') or (D', H', W', C); the dtype of `array` for order 0, float32 for order 1.

  Raises:
    ValueError: if the order, a spacing or the number of axes is wrong.
  """
  if order not in (0, 1):
    raise ValueError(f'order {order}: 0 (labels) and 1 (images) are supported')
  if array.ndim not in (3, 4) or min(array.shape) < 1:
    raise ValueError(f'array of shape {array.shape}: expected (D, H, W) or (D, H, W, C)')
  mm = np.array([spacing, target_spacing], float)
  if mm.shape != (2, 3) or not (np.isfinite(mm) & (mm > 0)).all():
    raise ValueError(f'spacing {spacing} to {target_spacing}: expected three positive mm each')
  if target_shape is None:
    target_shape = output_shape(array.shape[:3], spacing, target_spacing)
  axes = list(zip(array.shape[:3], mm[0], map(int, target_shape), mm[1], strict=True))
  if order == 0:
    return _nearest(array, [_nearest_indices(*axis) for axis in axes])
  array = np.asarray(array, np.float32)
  # Shrinking axes first: the others then have less to do.
  for axis in sorted(range(3), key=lambda a: axes[a][2] / axes[a][0]):
    n_in, s, n_out, t = axes[axis]
    if t > s:
      array = _shrink(array, axis, *axes[axis])
    elif n_in != n_out or s != t:
      array = interpolate(array, axis, *axis_weights(*axes[axis]))
  return array


def _indices(n_in, spacing, n_out, target_spacing):
  """(n_out,) float64 positions on the old grid, clamped to its outermost centres."""
  index = (np.arange(n_out) - (n_out - 1) / 2) * (target_spacing / spacing) + (n_in - 1) / 2
  return np.clip(index, 0, n_in - 1)


def _nearest_indices(n_in, spacing, n_out, target_spacing):
  """(n_out,) int64 nearest voxels, twice: they differ where two are equally near.

  Of those two the first has the lower and the upper one in turn, the second the other.
  """
  index = _indices(n_in, spacing, n_out, target_spacing)
  # The small number keeps round-off from deciding ties.
  lower = np.maximum(np.ceil(index - 0.5 - 1e-6), 0).astype(np.int64)
  upper = np.minimum(np.floor(index + 0.5 + 1e-6), n_in - 1).astype(np.int64)
  turned = np.cumsum(lower != upper) % 2 == 0
  return np.where(turned, upper, lower), np.where(turned, lower, upper)


def _nearest(array, indices):
  """What most of the nearest voxels hold, and else the first of them; `indices` by axis."""
  sides = [pair if (pair[0] != pair[1]).any() else pair[:1] for pair in indices]
  held = [array[np.ix_(*chosen)] for chosen in itertools.product(*sides)]
  result, most = held[0], np.zeros(held[0].shape, np.int8)
  if len(held) == 1:
    return result
  for values in held:
    votes = sum((values == other).astype(np.int8) for other in held)
    result = np.where(votes > most, values, result)
    most = np.maximum(votes, most)
  return result


def interpolate(
  array: np.ndarray, axis: int, lower: np.ndarray, upper: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  """(..., n_in, ...) float32 -> (..., n_out, ...) along one axis, by its `axis_weights`."""
  result, step = np.take(array, lower, axis), np.take(array, upper, axis)
  step -= result
  step *= weight.reshape(-1, *[1] * (array.ndim - 1 - axis))
  result += step
  return result


def _shrink(array, axis, n_in, spacing, n_out, target_spacing):
  """Smoothing and interpolation in one product with an (n_out, n_in) matrix."""
  from scipy import ndimage  # slow to import

  sigma = (target_spacing / spacing - 1) / 2
  smooth = ndimage.gaussian_filter1d(np.eye(n_in), sigma, axis=0, mode='nearest')
  weights = axis_weights(n_in, spacing, n_out, target_spacing)
  matrix = interpolate(smooth, 0, *weights).astype(np.float32)
  outer, inner = array.shape[:axis], array.shape[axis + 1 :]
  if not inner:  # one product instead of a column at a time
    return array @ matrix.T
  result = matrix @ array.reshape(*outer, n_in, -1)
  return result.reshape(*outer, n_out, *inner)
