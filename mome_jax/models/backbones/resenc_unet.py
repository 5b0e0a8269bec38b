"""The residual encoder U-Net of nnU-Net (Isensee et al., "nnU-Net Revisited", MICCAI 2024)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax import ops
from mome_jax.models.backbones.scales import HalvingScales

SIZES: dict[str, dict[str, tuple[int, ...]]] = {
  'tiny': {'channels': (8, 16, 32, 48), 'blocks': (1, 1, 1, 1)},
  'small': {'channels': (16, 32, 64, 128, 160), 'blocks': (1, 2, 2, 2, 2)},
  'base': {  # the published plan ResEnc M
    'channels': (32, 64, 128, 256, 320, 320),
    'blocks': (1, 3, 4, 6, 6, 6),
  },
}


class ConvNorm(nn.Module):
  """3x3x3 convolution and instance normalisation: (B, D, H, W, C) -> (B, D, H, W, features)."""

  features: int
  size: int = 3
  use_bias: bool = True
  halve: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = ops.Conv3D(
      self.features,
      size=self.size,
      use_bias=self.use_bias,
      halve=self.halve,
      dtype=self.dtype,
      name='conv',
    )(x)
    return ops.GroupNorm(per_channel=True, dtype=self.dtype, name='norm')(x)


class ResidualBlock(nn.Module):
  """Two convolutions beside a shortcut: (B, D, H, W, C) -> (B, D, H, W, features).

  With `halve` the first convolution and the shortcut, a mean over 2x2x2 voxels, halve the sides.
  """

  features: int
  halve: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = functools.partial(ConvNorm, self.features, dtype=self.dtype)
    y = nn.leaky_relu(conv(halve=self.halve, name='conv_0')(x))
    y = conv(name='conv_1')(y)
    if self.halve:
      x = ops.mean_pool(x)
    if x.shape[-1] != self.features:
      x = conv(size=1, use_bias=False, name='shortcut')(x)
    return nn.leaky_relu(x + y)


class Stage(nn.Module):
  """`blocks` residual blocks, of which the first may halve the sides."""

  features: int
  blocks: int
  halve: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.blocks):
      halve = self.halve and i == 0
      x = ResidualBlock(self.features, halve, self.dtype, name=f'block_{i}')(x)
    return x


class UpStage(nn.Module):
  """Doubles x, joins the skip, one convolution: -> (B, 2D, 2H, 2W, C_skip)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
    up = ops.UpConv3D(skip.shape[-1], dtype=self.dtype, name='upsample')(x)
    conv = ConvNorm(skip.shape[-1], dtype=self.dtype, name='conv')
    return nn.leaky_relu(conv(jnp.concatenate([up, skip], -1)))


class ResEncUNet(HalvingScales, nn.Module):
  """(B, D, H, W, C_in) -> the decoder's features, finest first, the bottleneck last.

  As many scales as `channels`, strides 1, 2, 4, ...; D, H, W must be multiples of the last.
  """

  channels: tuple[int, ...]
  blocks: tuple[int, ...]  # residual blocks of each encoder stage
  remat: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
    stage = nn.remat(Stage) if self.remat else Stage
    up_stage = nn.remat(UpStage) if self.remat else UpStage
    stem = ConvNorm(self.channels[0], dtype=self.dtype, name='stem')
    x = nn.leaky_relu(stem(x.astype(self.dtype)))
    skips = []
    for level, (features, blocks) in enumerate(zip(self.channels, self.blocks, strict=True)):
      x = stage(features, blocks, level > 0, self.dtype, name=f'encoder_{level}')(x)
      skips.append(x)
    pyramid = [x]
    for level in reversed(range(self.num_scales - 1)):
      x = up_stage(self.dtype, name=f'decoder_{level}')(x, skips[level])
      pyramid.append(x)
    return tuple(reversed(pyramid))
