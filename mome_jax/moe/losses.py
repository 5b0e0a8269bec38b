"""Auxiliary losses of a bank, over its valid tokens of all devices.

NOTE: computed on global arrays. A balance taken per device would force a crop of nothing but air to
use all experts alike.
"""

import jax
import jax.numpy as jnp

from mome_jax.moe.routing import Routes


def balance_loss(routes: Routes, valid: jax.Array) -> jax.Array:
  """E sum_e f_e P_e: 1 when balanced, E / k when all tokens choose the same k experts.

  f_e is the share of choices that go to expert e, P_e its mean probability (Switch Transformer,
  JMLR 2022, normalised by k). The gradient flows through P.

  Args:
    routes: of N tokens.
    valid: (N,) bool.
  """
  mean = _mean(routes.probabilities, valid)
  return mean.shape[0] * (load(routes, valid) * mean).sum()


def z_loss(routes: Routes, valid: jax.Array) -> jax.Array:
  """Mean of logsumexp(logits)^2, which keeps router logits small (ST-MoE, 2022)."""
  return _mean(jnp.square(jax.nn.logsumexp(routes.logits, axis=-1)), valid)


def load(routes: Routes, valid: jax.Array) -> jax.Array:
  """f: share of the valid tokens' choices that go to each expert, (E,) float32, sum 1."""
  num_experts, top_k = routes.logits.shape[-1], routes.experts.shape[-1]
  chosen = (routes.experts[..., None] == jnp.arange(num_experts)).any(1)
  return _mean(chosen.astype(jnp.float32), valid) / top_k


def _mean(x: jax.Array, valid: jax.Array) -> jax.Array:
  weight = valid.reshape((-1,) + (1,) * (x.ndim - 1))
  return jnp.where(weight, x, 0.0).sum(0) / jnp.maximum(valid.sum(), 1)
