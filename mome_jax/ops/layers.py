"""Layers of 3D networks: convolutions, normalisation and resampling."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mome_jax.ops import conv3d

EPSILON = 1e-5  # of every normalisation; Flax's default is 1e-6, the published weights used 1e-5
# Of products that decide which experts are chosen: a TPU's default is one pass in bfloat16, which
# sends a few tokens in a thousand elsewhere, and a GPU's has 10 bits.
EXACT = lax.Precision.HIGHEST
exact = functools.partial(jnp.einsum, precision=EXACT)


def _sum_rows(x: jax.Array) -> jax.Array:
  """Sum over space in two steps: XLA:CPU splits a sum over its cores by the rows of its result."""
  rows = x.reshape(x.shape[0], -1, *x.shape[-2:]).sum(2)
  return lax.optimization_barrier(rows).sum(1)


def _spatial_sum(x: jax.Array) -> jax.Array:
  """(B, ..., C) -> (B, C)."""
  spatial = tuple(range(1, x.ndim - 1))
  return lax.platform_dependent(x, cpu=_sum_rows, default=lambda x: x.sum(spatial))


def _spatial_mean(x: jax.Array) -> jax.Array:
  return _spatial_sum(x) / math.prod(x.shape[1:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def broadcast(vector: jax.Array, shape: Sequence[int]) -> jax.Array:
  """(C,) -> shape (..., C); its gradient, a sum over all but C, is split over a CPU's cores."""
  return jnp.broadcast_to(vector, shape)


def _broadcast_forward(vector, shape):
  return jnp.broadcast_to(vector, shape), None


def _broadcast_backward(shape, _, dy):
  wide = dy.astype(conv3d.at_least_float32(dy.dtype))
  return (_spatial_sum(wide[None])[0].astype(dy.dtype),)


broadcast.defvjp(_broadcast_forward, _broadcast_backward)


class Conv3D(nn.Module):
  """3D convolution: (B, D, H, W, C) -> (B, D, H, W, features), or half the sides.

  Attributes:
    features: channels of the output.
    size: side of the kernel, odd.
    halve: whether to compute every second voxel only (`conv3d_halving`); size 3.
    space_to_depth: whether to compute in blocks (`conv3d_blocked`), for the image's few channels.
  """

  features: int
  size: int = 3
  use_bias: bool = True
  halve: bool = False
  space_to_depth: bool = False
  dtype: jnp.dtype = jnp.float32
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.size,) * 3 + (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape)
    convolve = conv3d.conv3d
    if self.halve:
      convolve = conv3d.conv3d_halving
    elif self.space_to_depth:
      convolve = conv3d.conv3d_blocked
    y = convolve(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,))
      y = y + broadcast(bias.astype(self.dtype), y.shape)
    return y


class DownConv3D(nn.Module):
  """Convolution, kernel 2, stride 2, with bias: (B, 2D, 2H, 2W, C) -> (B, D, H, W, features).

  Without overlap it is a reshape and one matrix product.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, d, h, w, c = x.shape
    kernel = self.param('kernel', nn.initializers.he_normal(), (2, 2, 2, c, self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x.astype(self.dtype).reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c)
    y = jnp.einsum('bdxhywzc,xyzco->bdhwo', x, kernel.astype(self.dtype))
    return y + broadcast(bias.astype(self.dtype), y.shape)


class UpConv3D(nn.Module):
  """Transposed convolution, kernel 2, stride 2: (B, D, H, W, C) -> (B, 2D, 2H, 2W, features).

  The kernel (2, 2, 2, C, features) is PyTorch's ConvTranspose3d kernel with its axes moved.
  """

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (2, 2, 2, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape)
    y = conv3d.conv3d_doubling(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + broadcast(bias.astype(self.dtype), y.shape)
    return y


class Dense(nn.Module):
  """`nn.Dense` for voxels, (..., C) -> (..., features), with a fast gradient on a CPU."""

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    y = conv3d.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + broadcast(bias.astype(self.dtype), y.shape)
    return y


class LayerNorm(nn.Module):
  """Normalises each voxel over its channels, x (..., C); float32 statistics.

  Scale and shift are learned, or with `learned=False` absent.
  """

  learned: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(conv3d.at_least_float32(x.dtype))
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    if self.learned:
      scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
      bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
      y = y * broadcast(scale, y.shape) + broadcast(bias, y.shape)
    return y.astype(self.dtype)


def _over_groups(x: jax.Array, groups: int) -> jax.Array:
  """(B, C), each channel's value replaced by the mean over its group."""
  grouped = x.reshape(x.shape[0], groups, -1)
  return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(x.shape)


def _at_voxels(x: jax.Array, ndim: int) -> jax.Array:
  """(B, C) -> (B, 1, ..., C)."""
  return jnp.expand_dims(x, tuple(range(1, ndim - 1)))


def _moments(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
  """Mean and reciprocal standard deviation of the groups of x (B, ..., C), (B, C) each."""
  mean = _over_groups(_spatial_mean(x), groups)
  square = jnp.square(x - _at_voxels(mean, x.ndim))
  return mean, lax.rsqrt(_over_groups(_spatial_mean(square), groups) + EPSILON)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, dtype: jnp.dtype
) -> jax.Array:
  """Normalised x (B, ..., C) times scale plus bias (C,), in `dtype`.

  With its gradient spelled out, so that its sums over space, which are most of its cost on a CPU,
  are few and split over the cores.
  """
  return _normalise_forward(x, scale, bias, groups, dtype)[0]


def _normalise_forward(x, scale, bias, groups, dtype):
  wide = x.astype(conv3d.at_least_float32(x.dtype))
  mean, inverse = _moments(wide, groups)
  multiplier = inverse * scale
  offset = bias - mean * multiplier
  y = wide * _at_voxels(multiplier, x.ndim) + _at_voxels(offset, x.ndim)
  return y.astype(dtype), (x, scale, mean, inverse)


def _normalise_backward(groups, dtype, residuals, dy):
  del dtype
  x, scale, mean, inverse = residuals
  wide, dy = (a.astype(mean.dtype) for a in (x, dy))
  place = lambda moment: _at_voxels(moment, x.ndim)
  # d_bias and d_scale of each sample, as means over space
  shift = _spatial_mean(dy)
  slope = _spatial_mean(dy * (wide - place(mean))) * inverse
  dx = place(inverse * scale) * dy - place(inverse * _over_groups(scale * shift, groups))
  dx -= (wide - place(mean)) * place(inverse**2 * _over_groups(scale * slope, groups))
  voxels = math.prod(x.shape[1:-1])
  d_scale, d_bias = ((voxels * a.sum(0)).astype(scale.dtype) for a in (slope, shift))
  return dx.astype(x.dtype), d_scale, d_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


class GroupNorm(nn.Module):
  """Group normalisation with gcd(16, C) groups, or one per channel; float32 statistics.

  `per_channel` is instance normalisation: each sample by its own statistics. Scale and shift are
  learned, or with `learned=False` absent.
  """

  per_channel: bool = False
  learned: bool = True
  dtype: jnp.dtype = jnp.float32

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x (B, ..., C); returns the same shape in `dtype`."""
    return _normalise(x, *self._parameters(x.shape[-1]), self._groups(x), self.dtype)

  def affine(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What normalising x (B, ..., C) amounts to: multiplier and offset, (B, C) float32 each.

    A linear map of normalised features can take them into its weights, so that the normalised
    features are never made.
    """
    scale, bias = self._parameters(x.shape[-1])
    mean, inverse = _moments(x.astype(conv3d.at_least_float32(x.dtype)), self._groups(x))
    return inverse * scale, bias - mean * inverse * scale

  @nn.compact
  def _parameters(self, channels: int) -> tuple[jax.Array, jax.Array]:
    if not self.learned:
      return jnp.ones(channels), jnp.zeros(channels)
    scale = self.param('scale', nn.initializers.ones, (channels,))
    return scale, self.param('bias', nn.initializers.zeros, (channels,))

  def _groups(self, x: jax.Array) -> int:
    return x.shape[-1] if self.per_channel else math.gcd(16, x.shape[-1])


def rematerialised(module: type[nn.Module], remat: bool) -> type[nn.Module]:
  """The module class, or one that recomputes its inner values in the backward pass."""
  return nn.remat(module) if remat else module


def _max_pool_pairs(x: jax.Array) -> jax.Array:
  for axis in (1, 2, 3):
    shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    x = x.reshape(shape)
    x = jnp.maximum(
      lax.index_in_dim(x, 0, axis + 1, False), lax.index_in_dim(x, 1, axis + 1, False)
    )
  return x


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """2x2x2 maximum: (B, D, H, W, C) -> (B, D/2, H/2, W/2, C); of equal voxels the first counts."""
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


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


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
  *across, along = range(x.ndim - 3, x.ndim)
  for axis in across:
    x = _upsample_axis(x, factor, axis)
  return lax.platform_dependent(
    x,
    cpu=functools.partial(_upsample_rows, factor=factor),
    default=functools.partial(_upsample_axis, factor=factor, axis=along),
  )


def _upsample_rows(x: jax.Array, factor: int) -> jax.Array:
  """Along the last axis, as a product: XLA:CPU would interpolate anew wherever the result is read.

  Five scales fused at 64^3, one core: 80 ms in place of 417 (sixteen classes).
  """
  wide = conv3d.at_least_float32(x.dtype)
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
