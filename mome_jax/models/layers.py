"""Convolutions, normalisation and resampling in 3D."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EPSILON = 1e-5  # of every normalisation; Flax's default is 1e-6, the published weights used 1e-5


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
  """The type of statistics and scores: float32 for bfloat16, float64 for float64."""
  return jnp.promote_types(dtype, jnp.float32)


def _conv3d_native(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (1, 1, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )


def _conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Every plane of x (B, D, H, W, C) with one kernel (n, n, C, C_out)."""
  b, d, h, w, c = x.shape
  planes = lax.conv_general_dilated(
    x.reshape(b * d, h, w, c), kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return planes.reshape(b, d, h, w, -1)


def _conv3d_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The same convolution as 2D ones, because XLA:CPU has fast code for those only.

  Along the depth, Winograd's F(2, 3) (Lavin and Gray, CVPR 2016) makes two output planes from four
  plane products instead of six; what it adds is sums of planes. It equals the plain sum over the
  three taps up to rounding (1e-6 relative in float32); odd depths take that sum. F(4, 3) needs
  fewer products still, but its strided gradient costs more than it saves. Of bfloat16 the sums are
  float32 and rounded once, as on a TPU.
  """
  dtype, depth = x.dtype, x.shape[1]
  x, kernel = (a.astype(at_least_float32(dtype)) for a in (x, kernel))
  if kernel.shape[0] == 3 and depth % 2 == 0:
    pairs = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    pairs = pairs.reshape(x.shape[0], depth // 2 + 1, 2, *x.shape[2:])
    p0, p1, p2, p3 = pairs[:, :-1, 0], pairs[:, :-1, 1], pairs[:, 1:, 0], pairs[:, 1:, 1]
    outer, middle = (kernel[0] + kernel[2]) / 2, kernel[1] / 2
    a = _conv2d(p0 - p2, kernel[0])
    b = _conv2d(p1 + p2, outer + middle)
    c = _conv2d(p2 - p1, outer - middle)
    d = _conv2d(p1 - p3, kernel[2])
    y = jnp.stack([a + b + c, b - c - d], 2).reshape(*x.shape[:4], -1)
  else:
    half = kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))
    y = sum(_conv2d(padded[:, t : t + depth], tap) for t, tap in enumerate(kernel))
  return y.astype(dtype)


def conv3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3D convolution, stride 1, zero padding to the same size, lowered as the platform likes it.

  Args:
    x: (B, D, H, W, C).
    kernel: (n, n, n, C, C_out), n odd, same dtype as x.

  Returns:
    (B, D, H, W, C_out).
  """
  if kernel.shape[:3] == (1, 1, 1):
    return x @ kernel[0, 0, 0]
  return lax.platform_dependent(x, kernel, cpu=_conv3d_planes, default=_conv3d_native)


def _conv3d_halving_native(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (2, 2, 2), ((1, 1),) * 3, dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )


def _conv3d_halving_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
  dtype, (b, depth, h, w, c) = x.dtype, x.shape
  x, kernel = (a.astype(at_least_float32(dtype)) for a in (x, kernel))
  padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
  total = 0.0
  for t, tap in enumerate(kernel):
    planes = padded[:, t : t + depth : 2].reshape(b * depth // 2, h, w, c)
    total += lax.conv_general_dilated(
      planes, tap, (2, 2), ((1, 1),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
  return total.reshape(b, depth // 2, h // 2, w // 2, -1).astype(dtype)


def conv3d_halving(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3x3 convolution of every second voxel, one voxel of zeros around.

  Args:
    x: (B, D, H, W, C), even sides.
    kernel: (3, 3, 3, C, C_out), same dtype as x.

  Returns:
    (B, D / 2, H / 2, W / 2, C_out), centred on the voxels 0, 2, 4, ...
  """
  return lax.platform_dependent(
    x, kernel, cpu=_conv3d_halving_planes, default=_conv3d_halving_native
  )


def conv3d_blocked(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 3x3x3 convolution of few channels as one of 2x2x2 blocks, eight times as many channels.

  The same sums as `conv3d`. A TPU pads channels to its 128 lanes, which a one-channel image fills
  by less than one percent.

  Args:
    x: (B, D, H, W, C), even sides.
    kernel: (3, 3, 3, C, C_out), same dtype as x.

  Returns:
    (B, D, H, W, C_out).
  """
  b, d, h, w, c = x.shape
  # Output voxel 2p + o reads voxel 2p + o + t - 1 = 2(p + q - 1) + i, for tap t and block tap q.
  reads = np.zeros((3, 3, 2, 2), np.float32)  # (q, t, i, o)
  for tap, o in np.ndindex(3, 2):
    q, i = divmod(o + tap - 1 + 2, 2)
    reads[q, tap, i, o] = 1
  reads = jnp.asarray(reads, x.dtype)
  wide = jnp.einsum('ptia,qujb,rvkc,tuvxy->pqrijkxabcy', reads, reads, reads, kernel)
  blocks = x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  y = conv3d(blocks.reshape(*blocks.shape[:4], -1), wide.reshape(3, 3, 3, 8 * c, -1))
  y = y.reshape(*blocks.shape[:4], 2, 2, 2, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return y.reshape(b, d, h, w, -1)


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
    convolve = conv3d_halving if self.halve else conv3d_blocked if self.space_to_depth else conv3d
    y = convolve(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      y = y + self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
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
    return jnp.einsum('bdxhywzc,xyzco->bdhwo', x, kernel.astype(self.dtype)) + bias.astype(
      self.dtype
    )


class UpConv3D(nn.Module):
  """Transposed convolution, kernel 2, stride 2: (B, D, H, W, C) -> (B, 2D, 2H, 2W, features).

  Without overlap a transposed convolution is one matrix product and a reshape; the kernel
  (2, 2, 2, C, features) is PyTorch's ConvTranspose3d kernel with its axes moved.
  """

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, d, h, w, c = x.shape
    kernel = self.param('kernel', nn.initializers.he_normal(), (2, 2, 2, c, self.features))
    y = jnp.einsum('bdhwc,xyzco->bdxhywzo', x.astype(self.dtype), kernel.astype(self.dtype))
    y = y.reshape(b, 2 * d, 2 * h, 2 * w, self.features)
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return y


class GroupNorm(nn.Module):
  """Group normalisation with gcd(16, C) groups, or one per channel; float32 statistics.

  `per_channel` is instance normalisation: each sample by its own statistics. Scale and shift are
  learned, or with `learned=False` absent.
  """

  per_channel: bool = False
  learned: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def affine(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What normalising x (B, ..., C) amounts to: multiplier and offset, (B, C) float32 each.

    A linear map of normalised features can take them into its weights, so that the normalised
    features are never made.
    """
    channels = x.shape[-1]
    groups = channels if self.per_channel else math.gcd(16, channels)
    scale, bias = 1.0, 0.0
    if self.learned:
      scale = self.param('scale', nn.initializers.ones, (channels,))
      bias = self.param('bias', nn.initializers.zeros, (channels,))
    spatial = tuple(range(1, x.ndim - 1))
    x32 = x.astype(at_least_float32(x.dtype))

    def over_groups(moment):
      grouped = moment.reshape(-1, groups, channels // groups).mean(-1, keepdims=True)
      return jnp.broadcast_to(grouped, (*grouped.shape[:2], channels // groups)).reshape(
        -1, channels
      )

    mean = over_groups(x32.mean(spatial))
    centred = x32 - mean.reshape(-1, *[1] * len(spatial), channels)
    multiplier = scale * lax.rsqrt(over_groups(jnp.square(centred).mean(spatial)) + EPSILON)
    return multiplier, bias - mean * multiplier

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x (B, ..., C); returns the same shape in `dtype`."""
    shape = (-1, *[1] * (x.ndim - 2), x.shape[-1])
    multiplier, offset = (moment.reshape(shape) for moment in self.affine(x))
    return (x.astype(multiplier.dtype) * multiplier + offset).astype(self.dtype)


def rematerialised(module: type[nn.Module], remat: bool) -> type[nn.Module]:
  """The module class, or one that recomputes its inner values in the backward pass."""
  return nn.remat(module) if remat else module


def max_pool(x: jax.Array) -> jax.Array:
  """2x2x2 maximum: (B, D, H, W, C) -> (B, D/2, H/2, W/2, C)."""
  for axis in (1, 2, 3):  # three pairwise maxima: reduce_window's gradient is slow on the CPU
    shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    x = x.reshape(shape)
    x = jnp.maximum(
      lax.index_in_dim(x, 0, axis + 1, False), lax.index_in_dim(x, 1, axis + 1, False)
    )
  return x


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
  for axis in range(x.ndim - 3, x.ndim):
    x = _upsample_axis(x, factor, axis)
  return x


def _upsample_axis(x: jax.Array, factor: int, axis: int) -> jax.Array:
  if factor == 1:
    return x
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
