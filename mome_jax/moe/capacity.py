"""Executor that sends each token to the devices of its experts, C rows per device and expert.

Inside `shard_map` every device sorts its own tokens by expert, gathers C rows for each, exchanges
them over the mesh axis 'expert' with one `all_to_all`, runs its E / P experts and sends the results
back with another. No row is scattered, in the gradient neither, and nothing is gathered from other
devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from mome_jax.moe import routing

_TOKENS = P(('data', 'expert'))  # every device holds its own share
_EXPERTS = P('expert')
ROW_MULTIPLE = 8  # of the tokens of a device


def num_devices() -> int:
  """Devices of the mesh in effect, 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size


def execute(
  expert_fn: routing.ExpertFn,
  params: Any,
  tokens: jax.Array,
  routes: routing.Routes,
  valid: jax.Array,
  *,
  capacity: int,
  drop_free: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Sum over each token's chosen experts of weight times expert, where the expert has room.

  Runs on the mesh of `jax.set_mesh`, or on one device without a mesh.

  Args:
    expert_fn: (parameters with a leading axis e, rows (e, c, d)) -> (e, c, d), row by row.
    params: tree whose leaves have the leading axis E.
    tokens: (N, d), N a multiple of the number of devices.
    routes: of the tokens.
    valid: (N,) bool; other tokens get 0 and give no gradient.
    capacity: C, see `routing.capacity`.
    drop_free: go round until every choice is served; such a result depends on neither the mesh nor
      the other tokens. It has no gradient.

  Returns:
    (N, d) in the dtype of the experts' outputs, and which choices were served, (N, k) bool.

  Raises:
    ValueError: if the mesh cannot divide experts or tokens, or if C = 0 is to be drop-free.
  """
  num_experts = routes.logits.shape[-1]
  if drop_free and capacity == 0:
    raise ValueError('a capacity of 0 serves no token in any number of rounds')
  mesh = jax.sharding.get_abstract_mesh()
  one_device = _Device(expert_fn, num_experts, capacity, drop_free)
  operands = (params, tokens, routes.weights, routes.experts, valid)
  if mesh.empty:
    return one_device(*operands)
  if num_experts % mesh.shape['expert']:
    raise ValueError(
      f'{num_experts} experts cannot be shared by mesh.expert={mesh.shape["expert"]} devices evenly'
    )
  if tokens.shape[0] % mesh.size:
    raise ValueError(f'{tokens.shape[0]} tokens cannot be shared by {mesh.size} devices evenly')
  return jax.shard_map(
    dataclasses.replace(one_device, axes=('data', 'expert')),
    in_specs=(_EXPERTS, *(_TOKENS,) * 4),
    out_specs=(_TOKENS, _TOKENS),
  )(*operands)


@dataclasses.dataclass(frozen=True)
class _Device:
  """`execute` for the tokens of one device; `axes` are those of the mesh, () without one."""

  expert_fn: routing.ExpertFn
  num_experts: int
  capacity: int
  drop_free: bool
  axes: tuple[str, ...] = ()

  def __call__(
    self,
    params: Any,
    tokens: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    valid: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    def serve(waiting):
      choices = jnp.where(waiting, experts, self.num_experts)
      plan = routing.make_plan(choices, self.num_experts, self.capacity)
      rows = fill_slots(tokens, plan)
      rows = rows.reshape(self.num_experts, self.capacity, tokens.shape[-1])
      return combine(self._on_experts(params, rows), weights, plan), plan.keep

    waiting = jnp.broadcast_to(valid[:, None], experts.shape)
    if self.capacity == 0:
      return jnp.zeros_like(tokens), jnp.zeros_like(waiting)
    output, served = serve(waiting)
    if not self.drop_free:
      return output, served

    def again(carry):
      output, waiting, _ = carry
      more, served = serve(waiting)
      waiting = waiting & ~served
      return output + more, waiting, self._count(waiting)

    # All devices go the same number of rounds, or they would miss each other in the exchange.
    rest = waiting & ~served
    carry = (output, rest, self._count(rest))
    output, _, _ = lax.while_loop(lambda carry: carry[2] > 0, again, carry)
    return output, waiting

  def _count(self, waiting: jax.Array) -> jax.Array:
    """Choices that wait on any device."""
    count = waiting.sum()
    return lax.psum(count, self.axes) if self.axes else count

  def _on_experts(self, params: Any, rows: jax.Array) -> jax.Array:
    """Rows (E, C, d) of this device through the experts, wherever those live -> (E * C, d)."""
    num_experts, capacity, width = rows.shape
    if not self.axes:
      return self.expert_fn(params, rows).reshape(num_experts * capacity, width)
    devices = lax.axis_size('expert')
    exchange = functools.partial(lax.all_to_all, axis_name='expert', split_axis=0, concat_axis=0)
    local = num_experts // devices
    rows = exchange(rows.reshape(devices, local, capacity, width))
    rows = jnp.moveaxis(rows, 0, 1).reshape(local, devices * capacity, width)
    y = self.expert_fn(params, rows).reshape(local, devices, capacity, width)
    return exchange(jnp.moveaxis(y, 1, 0)).reshape(num_experts * capacity, width)


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
  """Rows at indices, zeros where out of range."""
  return rows.at[index].get(mode='fill', fill_value=0)


def fill_slots_plain(tokens: jax.Array, plan: routing.Plan) -> jax.Array:
  """`fill_slots` with the gradient that XLA makes: each slot's, scattered to its token."""
  return _take(tokens, plan.source)


@jax.custom_vjp
def fill_slots(tokens: jax.Array, plan: routing.Plan) -> jax.Array:
  """The token in each slot, zeros in empty ones: (n, d) -> (E * C, d).

  Its gradient is a gather too: a token's is the sum over the slots that it is in.
  """
  return fill_slots_plain(tokens, plan)


def _fill_slots_backward(plan, d_rows):
  return _take(d_rows, plan.slot).sum(1), None


fill_slots.defvjp(lambda tokens, plan: (fill_slots_plain(tokens, plan), plan), _fill_slots_backward)


def combine_plain(y: jax.Array, weights: jax.Array, plan: routing.Plan) -> jax.Array:
  """`combine` with the gradients that XLA makes: each token's, scattered to its slots."""
  chosen = weights[..., None].astype(y.dtype) * _take(y, plan.slot)
  return jnp.where(plan.keep[..., None], chosen, 0).sum(1)


@jax.custom_vjp
def combine(y: jax.Array, weights: jax.Array, plan: routing.Plan) -> jax.Array:
  """Weighted sum over the slots that a token is in: (E * C, d), weights (n, k) -> (n, d).

  Its gradients are gathers too: each slot holds one choice of one token.
  """
  return combine_plain(y, weights, plan)


def _combine_backward(residuals, d_output):
  y, weights, plan = residuals
  k, n = weights.shape[1], weights.shape[0]
  rows = _take(d_output, plan.source)  # zeros in empty slots
  place = plan.choice * n + plan.source  # of an empty slot k n + n, that is out of range
  by_y = _take(weights.T.reshape(-1), place)[:, None].astype(y.dtype) * rows
  wide = lambda x: x.astype(weights.dtype)
  # What an empty slot holds is no number to rely on.
  products = jnp.where((plan.choice < k)[:, None], wide(rows) * wide(y), 0)
  by_weights = _take(products.sum(-1), plan.slot)
  return by_y, by_weights, None


def _combine_forward(y, weights, plan):
  return combine_plain(y, weights, plan), (y, weights, plan)


combine.defvjp(_combine_forward, _combine_backward)
