"""What a bank's router does, in numbers to log."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mome_jax.moe import losses
from mome_jax.moe.routing import Routes


def summarize(
  routes: Routes, valid: jax.Array, served: jax.Array, slots: int | None = None
) -> dict[str, jax.Array]:
  """Statistics over the valid tokens of all devices.

  Args:
    routes: of N tokens.
    valid: (N,) bool.
    served: (N, k) bool; the choices that an expert had room for.
    slots: rows of all experts' buffers on all devices; None where there are no buffers.

  Returns:
    Scalars: `entropy` of a token's probabilities and `entropy_of_mean`, both relative to log E (low
    and low is a collapse, low and high is specialisation); `confidence`, the mean weight of served
    choices; `logit_max`; `load_max_over_mean`, `load_min`; `dropped`, `dropped_first`, shares of
    choices and of first choices without room; `no_expert`, the share of tokens with none at all;
    `slots_used`, where there are slots. And (E,) `load`, the experts' shares of the choices.
  """
  tokens = jnp.maximum(valid.sum(), 1)
  num_experts, top_k = routes.logits.shape[-1], routes.experts.shape[-1]
  served = served & valid[:, None]
  mean = jnp.where(valid[:, None], routes.probabilities, 0.0).sum(0) / tokens
  load = losses.load(routes, valid)
  statistics = {
    'entropy': jnp.where(valid, _entropy(routes.probabilities), 0.0).sum() / tokens,
    'entropy_of_mean': _entropy(mean),
    'confidence': jnp.where(served, routes.weights, 0.0).sum() / jnp.maximum(served.sum(), 1),
    'logit_max': jnp.where(valid, routes.logits.max(-1), -jnp.inf).max(),
    'load': load,
    'load_max_over_mean': load.max() * num_experts,
    'load_min': load.min(),
    'dropped': 1 - served.sum() / (top_k * tokens),
    'dropped_first': 1 - served[:, 0].sum() / tokens,
    'no_expert': 1 - served.any(-1).sum() / tokens,
  }
  if slots is not None:
    statistics['slots_used'] = served.sum() / slots
  return jax.lax.stop_gradient(statistics)


def _entropy(p: jax.Array) -> jax.Array:
  return -jax.scipy.special.xlogy(p, p).sum(-1) / math.log(max(p.shape[-1], 2))


def by_class(experts: jax.Array, num_experts: int, targets: jax.Array) -> jax.Array:
  """The expert-by-organ matrix: choices of each expert made by the tokens of each class.

  A column divided by its sum holds the experts' shares in a class.

  Args:
    experts: (..., k) int32, chosen experts of each token.
    num_experts: E.
    targets: (..., K) float32, the share of each token that belongs to each class.

  Returns:
    (E, K) float32.
  """
  chosen = (experts[..., None] == jnp.arange(num_experts)).any(-2).astype(jnp.float32)
  chosen, targets = chosen.reshape(-1, num_experts), targets.reshape(-1, targets.shape[-1])
  # A TPU's default would round shares to 8 bits before it adds them up.
  counts = jnp.matmul(chosen.T, targets, precision=jax.lax.Precision.HIGHEST)
  return jax.lax.stop_gradient(counts)


def gradient_norms(grads: Any) -> jax.Array:
  """Norm of each expert's gradient: tree of leaves with the leading axis E -> (E,) float32."""
  squares = [jnp.square(g.reshape(g.shape[0], -1)).sum(-1) for g in jax.tree.leaves(grads)]
  return jnp.sqrt(sum(squares))
