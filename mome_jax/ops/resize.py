"""Pooling and interpolation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mome_jax.ops.precision import EXACT, at_least_float32


def max_pool_plain(x: jax.Array) -> jax.Array:
  """`max_pool` as XLA lowers it."""
  return nn.max_pool(x, (2, 2, 2), (2, 2, 2))


def _max_pool_pairs(x: jax.Array) -> jax.Array:
  for axis in (1, 2, 3):
    shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    x = x.reshape(shape)
    x = jnp.maximum(
      lax.index_in_dim(x, 0, axis + 1, False), lax.index_in_dim(x, 1, axis + 1, False)
    )
  return x


def max_pool(x: jax.Array) -> jax.Array:
  """2x2x2 maximum: (B, D, H, W, C) -> (B, D/2, H/2, W/2, C); of equal voxels the first counts.

  A TPU has an operation for the gradient of XLA's own, with less than half the traffic there.
  """
  return lax.platform_dependent(x, tpu=max_pool_plain, default=max_pool_pairs)


@jax.custom_vjp
def max_pool_pairs(x: jax.Array) -> jax.Array:
  """`max_pool` as maxima of pairs along each axis."""
  return _max_pool_pairs(x)


def _max_pool_forward(x):
  y = _max_pool_pairs(x)
  return y, (x, y)


def _max_pool_backward(residuals, dy):
  x, y = residuals
  taken, parts = jnp.zeros(y.shape, bool), []
  for i, j, k in np.ndindex(2, 2, 2):
    first = (x[:, i::2, j::2, k::2] == y) & ~taken
    parts.append(jnp.where(first, dy, 0))
    taken |= first
  for axis in (4, 3, 2):
    parts = [jnp.stack(pair, axis) for pair in zip(parts[::2], parts[1::2], strict=True)]
    shape = list(y.shape)
    shape[axis - 1 : 4] = x.shape[axis - 1 : 4]
    parts = [part.reshape(shape) for part in parts]
  return (parts[0],)


max_pool_pairs.defvjp(_max_pool_forward, _max_pool_backward)


def mean_pool(x: jax.Array) -> jax.Array:
  """2x2x2 mean: (B, D, H, W, C) -> (B, D/2, H/2, W/2, C)."""
  b, d, h, w, c = x.shape
  return x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c).mean((2, 4, 6))


def upsample(x: jax.Array, factor: int) -> jax.Array:
  """Trilinear interpolation of the last three axes, half-pixel centres (align-corners off).

  Args:
    x: (..., D, H, W), any float dtype.
    factor: the same integer for each axis.

  Returns:
    (..., factor D, factor H, factor W).
  """
  if factor == 1:
    return x
  return lax.platform_dependent(
    x,
    cpu=functools.partial(_upsample_last_as_product, factor=factor),
    tpu=functools.partial(upsample_products, factor=factor),
    default=functools.partial(upsample_plain, factor=factor),
  )


def upsample_plain(x: jax.Array, factor: int) -> jax.Array:
  """`upsample` as a GPU lowers it: weighted sums of neighbours along each axis."""
  for axis in range(x.ndim - 3, x.ndim):
    x = _upsample_axis(x, factor, axis)
  return x


def upsample_products(x: jax.Array, factor: int) -> jax.Array:
  """`upsample` as a TPU lowers it: a matrix product along each axis.

  Sums of neighbours would be float32 arrays of a few values a row, stacked and moved into place.
  The weights are multiples of 1 / (2 factor), so that those of a power of two are exact in
  bfloat16; sums are float32, rounded behind each axis.
  """
  for axis, letters in enumerate(('xhw,xd->dhw', 'dxw,xh->dhw', 'dhx,xw->dhw')):
    before, after = letters.split('->')
    terms, weights = before.split(',')
    matrix = jnp.asarray(_interpolation(x.shape[axis - 3], factor), x.dtype)
    x = jnp.einsum(f'...{terms},{weights}->...{after}', x, matrix, precision=EXACT)
  return x


def _upsample_last_as_product(x: jax.Array, factor: int) -> jax.Array:
  for axis in range(x.ndim - 3, x.ndim - 1):
    x = _upsample_axis(x, factor, axis)
  return _upsample_rows(x, factor)


def _upsample_rows(x: jax.Array, factor: int) -> jax.Array:
  """Along the last axis, as a product: XLA:CPU would interpolate anew wherever the result is read.

  Five scales fused at 64^3, one core: 80 ms in place of 417 (sixteen classes).
  """
  wide = at_least_float32(x.dtype)
  return (x.astype(wide) @ _interpolation(x.shape[-1], factor).astype(wide)).astype(x.dtype)


@functools.cache
def _interpolation(n: int, factor: int) -> np.ndarray:
  """(n, factor n): how much each value counts in each interpolated one."""
  place = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
  return np.maximum(0, 1 - np.abs(place - np.arange(n)[:, None]))


def _upsample_axis(x: jax.Array, factor: int, axis: int) -> jax.Array:
  n = x.shape[axis]
  before = jnp.concatenate(
    [lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis
  )
  after = jnp.concatenate(
    [lax.slice_in_dim(x, 1, n, axis=axis), lax.slice_in_dim(x, n - 1, n, axis=axis)], axis
  )
  phases = []
  for phase in range(factor):
    offset = (phase + 0.5) / factor - 0.5  # of the fine voxel's centre from the coarse one's
    neighbour = before if offset < 0 else after
    phases.append((1 - abs(offset)) * x + abs(offset) * neighbour)
  shape = (*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
  return jnp.stack(phases, axis + 1).reshape(shape)
