"""Swin UNETR (Hatamizadeh et al., 2022): a Swin transformer encoder, a convolutional decoder."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax import ops
from mome_jax.errors import ConfigError, suggest
from mome_jax.models.backbones import swin

SIZES = {
  'tiny': {'features': 12},
  'small': {'features': 24},
  'base': {'features': 48},  # the published size
}


class ResidualBlock(nn.Module):
  """Two 3x3x3 convolutions beside a shortcut: (B, D, H, W, C) -> (B, D, H, W, features)."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = functools.partial(ops.Conv3D, self.features, use_bias=False, dtype=self.dtype)
    norm = ops.GroupNorm(per_channel=True, learned=False, dtype=self.dtype)
    y = nn.leaky_relu(norm(conv(name='conv_0')(x)))
    y = norm(conv(name='conv_1')(y))
    if x.shape[-1] != self.features:
      x = norm(conv(size=1, name='shortcut')(x))
    return nn.leaky_relu(x.astype(self.dtype) + y)


class UpBlock(nn.Module):
  """Doubles x (B, D, H, W, C) and joins it with the skip: -> (B, 2D, 2H, 2W, C_skip)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
    up = ops.UpConv3D(skip.shape[-1], use_bias=False, dtype=self.dtype, name='upsample')(x)
    joined = jnp.concatenate([up, skip], -1)
    return ResidualBlock(skip.shape[-1], dtype=self.dtype, name='block')(joined)


class SwinUNETR(nn.Module):
  """(B, D, H, W, C_in) -> the decoder's features, finest first, the bottleneck last.

  Six scales, strides 1 to 32; D, H, W must be multiples of 32. Where a side is 32, the bottleneck
  is one voxel long there; with all three, its instance normalisation leaves only zeros.
  """

  features: int
  merging: str = 'monai'  # a key of swin.MERGING_ORDERS
  remat: bool = False
  dtype: jnp.dtype = jnp.float32

  num_scales = 6
  stride = 32

  def __post_init__(self):
    super().__post_init__()
    if self.merging not in swin.MERGING_ORDERS:
      hint = suggest(self.merging, swin.MERGING_ORDERS)
      raise ConfigError(f'model.backbone.merging is {self.merging!r}; {hint}')

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
    block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
    up_block = nn.remat(UpBlock) if self.remat else UpBlock
    image = x.astype(self.dtype)
    states = swin.SwinTransformer(
      self.features, merging=self.merging, remat=self.remat, dtype=self.dtype, name='swin'
    )(image)
    skips = [block(self.features, dtype=self.dtype, name='encoder_0')(image)]
    for level, state in enumerate(states[:3], 1):
      skips.append(block(state.shape[-1], dtype=self.dtype, name=f'encoder_{level}')(state))
    skips.append(states[3])
    x = block(16 * self.features, dtype=self.dtype, name='encoder_5')(states[4])
    pyramid = [x]
    for level in reversed(range(5)):
      x = up_block(self.dtype, name=f'decoder_{level}')(x, skips[level])
      pyramid.append(x)
    return tuple(reversed(pyramid))
