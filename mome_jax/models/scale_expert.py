"""Decoder-layer experts: one scale's features -> what the class heads read."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax import ops
from mome_jax.models import heads, sparse_bank


class ScaleExpert(nn.Module):
  """z = Conv1(relu(GroupNorm(Block(F)))): (B, D_l, H_l, W_l, C_l) -> (B, D_l, H_l, W_l, 8).

  Block is a bank of sparse experts where `options` are given, else the identity.
  """

  options: sparse_bank.BankOptions | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    features: jax.Array,
    trained: jax.Array | None = None,
    body: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Returns z, and the report of the bank, None without one.

    Args:
      features: (B, D_l, H_l, W_l, C_l).
      trained: (J, d) float32, features of the training classes; a bank needs them.
      body: (B, D_l, H_l, W_l) bool; see `sparse_bank.SparseBank`.
      train: see there.
    """
    report = None
    if self.options is not None:
      assert trained is not None  # see MoME.__call__
      block = sparse_bank.SparseBank(self.options, self.dtype, name='bank')
      features, report = block(features, trained, body, train=train)
    x = nn.relu(ops.GroupNorm(dtype=self.dtype, name='norm')(features))
    return ops.Conv3D(heads.WIDTH, size=1, dtype=self.dtype, name='project')(x), report
