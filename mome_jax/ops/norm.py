"""Normalisation over channels, groups of channels, or space; float32 statistics."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mome_jax.ops.dense import broadcast, spatial_sum
from mome_jax.ops.precision import at_least_float32

EPSILON = 1e-5  # of every normalisation; Flax's default is 1e-6, the published weights used 1e-5


def _spatial_mean(x: jax.Array) -> jax.Array:
  return spatial_sum(x) / math.prod(x.shape[1:-1])


class LayerNorm(nn.Module):
  """Normalises each voxel over its channels, x (..., C); float32 statistics.

  Scale and shift are learned, or with `learned=False` absent.
  """

  learned: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(at_least_float32(x.dtype))
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


def normalise_plain(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, dtype: jnp.dtype
) -> jax.Array:
  """`normalise` by its definition, with the gradients that XLA makes."""
  batch, *space, channels = x.shape
  wide = x.astype(at_least_float32(x.dtype)).reshape(batch, -1, groups, channels // groups)
  centred = wide - wide.mean((1, 3), keepdims=True)
  variance = jnp.square(centred).mean((1, 3), keepdims=True)
  y = (centred * lax.rsqrt(variance + EPSILON)).reshape(batch, *space, channels)
  return (y * scale + bias).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, dtype: jnp.dtype
) -> jax.Array:
  """Normalised x (B, ..., C) times scale plus bias (C,), in `dtype`.

  With its gradient spelled out, so that its sums over space, which are most of its cost on a CPU,
  are few and split over the cores.
  """
  return _normalise_forward(x, scale, bias, groups, dtype)[0]


def _normalise_forward(x, scale, bias, groups, dtype):
  wide = x.astype(at_least_float32(x.dtype))
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


normalise.defvjp(_normalise_forward, _normalise_backward)


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
    return normalise(x, *self._parameters(x.shape[-1]), self._groups(x), self.dtype)

  def affine(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What normalising x (B, ..., C) amounts to: multiplier and offset, (B, C) float32 each.

    A linear map of normalised features can take them into its weights, so that the normalised
    features are never made.
    """
    scale, bias = self._parameters(x.shape[-1])
    mean, inverse = _moments(x.astype(at_least_float32(x.dtype)), self._groups(x))
    return inverse * scale, bias - mean * inverse * scale

  @nn.compact
  def _parameters(self, channels: int) -> tuple[jax.Array, jax.Array]:
    if not self.learned:
      return jnp.ones(channels), jnp.zeros(channels)
    scale = self.param('scale', nn.initializers.ones, (channels,))
    return scale, self.param('bias', nn.initializers.zeros, (channels,))

  def _groups(self, x: jax.Array) -> int:
    return x.shape[-1] if self.per_channel else math.gcd(16, x.shape[-1])
