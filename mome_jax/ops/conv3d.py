"""3D convolutions: XLA's own on a GPU, those of `conv3d_cpu.py` and `conv3d_tpu.py` elsewhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mome_jax.ops import conv3d_cpu, conv3d_tpu
from mome_jax.ops.dense import broadcast, matmul
from mome_jax.ops.precision import precision_of


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  half = len(kernel) // 2
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 3,
    ((half, half),) * 3,
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    precision=precision_of(x.dtype),
  )


def conv3d_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv3d` as XLA lowers it."""
  return _convolve(x, kernel, stride=1)


def conv3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3D convolution, stride 1, zero padding to the same size.

  Args:
    x: (B, D, H, W, C).
    kernel: (n, n, n, C, C_out), n odd, same dtype as x.

  Returns:
    (B, D, H, W, C_out).
  """
  if kernel.shape[:3] == (1, 1, 1):
    return matmul(x, kernel[0, 0, 0])
  return lax.platform_dependent(
    x, kernel, cpu=conv3d_cpu.conv3d, tpu=conv3d_tpu.conv3d, default=conv3d_plain
  )


def conv3d_halving_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv3d_halving` as XLA lowers it."""
  return _convolve(x, kernel, stride=2)


def conv3d_halving(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3x3 convolution of every second voxel, one voxel of zeros around.

  Args:
    x: (B, D, H, W, C), even sides.
    kernel: (3, 3, 3, C, C_out), same dtype as x.

  Returns:
    (B, D / 2, H / 2, W / 2, C_out), centred on the voxels 0, 2, 4, ...
  """
  return lax.platform_dependent(
    x, kernel, cpu=conv3d_cpu.conv3d_halving, default=conv3d_halving_plain
  )


def conv3d_doubling_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv3d_doubling` as one product."""
  b, d, h, w, _ = x.shape
  y = jnp.einsum('bdhwc,xyzco->bdxhywzo', x, kernel, precision=precision_of(x.dtype))
  return y.reshape(b, 2 * d, 2 * h, 2 * w, -1)


def conv3d_doubling(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Transposed convolution, kernel 2, stride 2; without overlap it is a matrix product.

  Args:
    x: (B, D, H, W, C).
    kernel: (2, 2, 2, C, C_out), same dtype as x.

  Returns:
    (B, 2 D, 2 H, 2 W, C_out).
  """
  return lax.platform_dependent(
    x, kernel, cpu=conv3d_cpu.conv3d_doubling, default=conv3d_doubling_plain
  )


class Conv3D(nn.Module):
  """3D convolution: (B, D, H, W, C) -> (B, D, H, W, features), or half the sides.

  Attributes:
    features: channels of the output.
    size: side of the kernel, odd.
    halve: whether to compute every second voxel only (`conv3d_halving`); size 3.
  """

  features: int
  size: int = 3
  use_bias: bool = True
  halve: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.size,) * 3 + (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape)
    convolve = conv3d_halving if self.halve else conv3d
    y = convolve(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
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
    precision = precision_of(self.dtype)
    y = jnp.einsum('bdxhywzc,xyzco->bdhwo', x, kernel.astype(self.dtype), precision=precision)
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
    y = conv3d_doubling(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + broadcast(bias.astype(self.dtype), y.shape)
    return y
