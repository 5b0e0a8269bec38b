"""Executor that runs every expert on every token: the oracle, and faster where E / k is small."""

from typing import Any

import jax
import jax.numpy as jnp

from mome_jax.moe.routing import ExpertFn, Routes


def execute(
  expert_fn: ExpertFn, params: Any, tokens: jax.Array, routes: Routes, valid: jax.Array
) -> jax.Array:
  """Sum over each token's chosen experts of weight times expert.

  Args:
    expert_fn: (parameters with a leading axis e, rows (e, c, d)) -> (e, c, d), row by row.
    params: tree whose leaves have the leading axis E.
    tokens: (N, d).
    routes: of the tokens.
    valid: (N,) bool; other tokens get 0 and give no gradient.

  Returns:
    (N, d) in the dtype of the tokens.
  """

  @jax.checkpoint  # else the scan keeps the hidden layer of all experts
  def add(total, numbered):
    index, one = numbered
    choice = (routes.experts == index) & valid[:, None]
    weight = jnp.where(choice, routes.weights, 0.0).sum(-1, keepdims=True)
    chosen = choice.any(-1, keepdims=True)
    # Rows of others are zeroed before the expert too: 0 * NaN in its weights' gradient is NaN.
    rows = jnp.where(chosen, tokens, 0)
    y = expert_fn(jax.tree.map(lambda p: p[None], one), rows[None])[0]
    # Broadcast before it is rounded: the gradient of a weight is summed over d in float32.
    weights = jnp.broadcast_to(weight, y.shape).astype(y.dtype)
    return total + jnp.where(chosen, weights * y, 0).astype(total.dtype), None

  num_experts = routes.logits.shape[-1]
  return jax.lax.scan(add, jnp.zeros_like(tokens), (jnp.arange(num_experts), params))[0]
