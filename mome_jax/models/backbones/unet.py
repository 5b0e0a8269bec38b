"""The U-Net of the CLIP-Driven Universal Model: three poolings, a pyramid of four scales."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax import ops
from mome_jax.models.backbones.scales import HalvingScales

SIZES = {
  'tiny': {'channels': (8, 16, 32, 64)},
  'small': {'channels': (16, 32, 64, 128)},
  'base': {'channels': (64, 128, 256, 512)},  # the published size, 19,073,600 parameters
}


class ConvBlock(nn.Module):
  """Two times 3x3x3 convolution, instance normalisation, relu."""

  channels: tuple[int, int]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, features in enumerate(self.channels):
      x = ops.Conv3D(features, dtype=self.dtype, name=f'conv_{i}')(x)
      x = ops.GroupNorm(per_channel=True, dtype=self.dtype, name=f'norm_{i}')(x)
      x = nn.relu(x)
    return x


class UNet(HalvingScales, nn.Module):
  """(B, D, H, W, C_in) -> the decoder's features, finest first, the bottleneck last.

  D, H, W must be multiples of `stride`. Each sample is normalised by its own statistics: at B = 1
  this is the original, whose BatchNorm always used the batch's.
  """

  channels: tuple[int, int, int, int]
  remat: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
    conv_block = nn.remat(ConvBlock) if self.remat else ConvBlock
    x = x.astype(self.dtype)
    skips = []
    for level, features in enumerate(self.channels):
      x = ops.max_pool(x) if level else x
      block = conv_block((features // 2, features), dtype=self.dtype, name=f'encoder_{level}')
      x = block(x)
      skips.append(x)
    pyramid = [x]
    for level in reversed(range(len(self.channels) - 1)):
      up = ops.UpConv3D(x.shape[-1], dtype=self.dtype, name=f'upsample_{level}')(x)
      features = self.channels[level]
      block = conv_block((features, features), dtype=self.dtype, name=f'decoder_{level}')
      x = block(jnp.concatenate([up, skips[level]], -1))
      pyramid.append(x)
    return tuple(reversed(pyramid))
