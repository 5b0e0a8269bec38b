"""Which expert a token goes to: routes, and the plan of ranks and slots an executor follows."""

import math
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

# Parameters with a leading axis e, and rows (e, c, d) -> (e, c, d), row by row.
ExpertFn = Callable[[Any, jax.Array], jax.Array]


@flax.struct.dataclass
class Routes:
  """The router's decision for every token.

  Attributes:
    logits: (N, E) float32.
    probabilities: (N, E) float32, their softmax.
    weights: (N, k) float32, of the chosen experts, best first; they sum to 1 for k >= 2.
    experts: (N, k) int32, the chosen experts.
  """

  logits: jax.Array
  probabilities: jax.Array
  weights: jax.Array
  experts: jax.Array


@flax.struct.dataclass
class Plan:
  """Where the choices of n tokens go on one device.

  Attributes:
    counts: (E,) int32, choices of each expert, dropped ones included.
    rank: (n, k) int32, place in the expert's queue, from 0.
    keep: (n, k) bool; False where the expert is full or the choice is none.
    slot: (n, k) int32, expert * C + rank; E * C, that is out of range, where not kept.
    source: (E * C,) int32, the token in each slot; n, that is out of range, where empty.
    choice: (E * C,) int32, which of the token's choices it is; k where empty.
  """

  counts: jax.Array
  rank: jax.Array
  keep: jax.Array
  slot: jax.Array
  source: jax.Array
  choice: jax.Array


def route(logits: jax.Array, valid: jax.Array, top_k: int) -> Routes:
  """The k most probable experts of every token, ties to the lower index.

  For k >= 2 the kept weights are renormalised. For k = 1 they are not: a weight that is always 1
  would leave the router without gradient.

  Args:
    logits: (N, E), computed in float32; lower precision changes the chosen sets.
    valid: (N,) bool; what other tokens hold reaches nothing, not even a gradient.
    top_k: k.
  """
  logits = jnp.where(valid[:, None], logits.astype(jnp.float32), 0.0)
  probabilities = jax.nn.softmax(logits)
  experts = _most_probable(probabilities, top_k)
  # A masked sum, not a gather: it partitions and its gradient is no scatter.
  chosen = experts[..., None] == jnp.arange(logits.shape[-1])
  weights = jnp.where(chosen, probabilities[:, None], 0.0).sum(-1)
  if top_k > 1:
    weights = weights / weights.sum(-1, keepdims=True)
  return Routes(logits, probabilities, weights, experts)


def _most_probable(probabilities: jax.Array, k: int) -> jax.Array:
  """Indices of the k largest, best first: (N, E) -> (N, k) int32.

  NOTE: not `lax.top_k`, for which XLA gathers the rows of all devices on each.
  """
  rest, best = jax.lax.stop_gradient(probabilities), []
  for _ in range(k):
    best.append(jnp.argmax(rest, axis=-1).astype(jnp.int32))
    rest = jnp.where(jnp.arange(rest.shape[-1]) == best[-1][:, None], -1.0, rest)
  return jnp.stack(best, -1)


def capacity(num_tokens: int, num_experts: int, top_k: int, factor: float) -> int:
  """C = factor * k * n / E, rounded up to a multiple of 8 and bounded by n.

  Args:
    num_tokens: n, of one device.
    num_experts: E.
    top_k: k.
    factor: room above the balanced load; E / k gives C = n, where nothing can be dropped.
  """
  rows = math.ceil(factor * top_k * num_tokens / num_experts)
  return min(-(-rows // 8) * 8, num_tokens)


def make_plan(experts: jax.Array, num_experts: int, capacity: int) -> Plan:
  """Queues the choices of n tokens at their experts, each of which takes the first C.

  All first choices come before any second choice; within a choice tokens come in order.

  Args:
    experts: (n, k) int32; E for a choice of no expert.
    num_experts: E.
    capacity: C.
  """
  n, k = experts.shape
  flat = experts.T.reshape(-1)  # choice-major
  order = jnp.argsort(flat, stable=True)
  counts = jnp.bincount(flat, length=num_experts + 1)
  start = jnp.cumsum(counts) - counts
  place = jnp.arange(k * n, dtype=jnp.int32)
  rank = jnp.zeros_like(flat).at[order].set(place - start[flat[order]], unique_indices=True)
  keep = (rank < capacity) & (flat < num_experts)
  slot = jnp.where(keep, flat * capacity + rank, num_experts * capacity)
  places = jnp.full((num_experts * capacity,), k * n, jnp.int32)
  places = places.at[slot].set(place, mode='drop', unique_indices=True)
  choice = places // n
  source = jnp.where(choice < k, places % n, n)
  back = lambda x: x.reshape(k, n).T
  return Plan(counts[:num_experts], back(rank), back(keep), back(slot), source, choice)
