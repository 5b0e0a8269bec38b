"""Decoder-layer experts: one scale's features -> what the class heads read."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax.models import heads, sparse_bank
from mome_jax.ops import layers


class ScaleExpert(nn.Module):
  """z = Conv1(relu(GroupNorm(Block(F)))): (B, D_l, H_l, W_l, C_l) -> (B, D_l, H_l, W_l, 8).

  Block is a bank of sparse experts where `options` are given, else the identity.
  """

  options: sparse_bank.BankOptions | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, features: jax.Array, context: jax.Array | None = None, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Returns z and what the bank did, None without one; see `sparse_bank.SparseBank`."""
    did = None
    if self.options is not None:
      block = sparse_bank.SparseBank(self.options, self.dtype, name='bank')
      features, did = block(features, context, train=train)
    x = nn.relu(layers.GroupNorm(dtype=self.dtype, name='norm')(features))
    return layers.Conv3D(heads.WIDTH, size=1, dtype=self.dtype, name='project')(x), did
