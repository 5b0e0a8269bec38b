"""Decoder-layer experts: one scale's features -> what the class heads read."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax.models import heads, layers


class ScaleExpert(nn.Module):
  """z = Conv1(relu(GroupNorm(F))): (B, D_l, H_l, W_l, C_l) -> (B, D_l, H_l, W_l, 8)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    x = nn.relu(layers.GroupNorm(dtype=self.dtype, name='norm')(features))
    return layers.Conv3D(heads.WIDTH, size=1, dtype=self.dtype, name='project')(x)
