"""Executor that sends each token to the devices of its experts, C rows per device and expert.

Inside `shard_map` every device sorts its own tokens by expert, gathers C rows for each, exchanges
them over the mesh axis 'expert' with one `all_to_all`, runs its E / P experts and sends the results
back with another. No row is scattered and nothing is gathered from other devices.
"""

import functools
from collections.abc import Callable

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
  expert_fn: Callable,
  params,
  tokens: jax.Array,
  gates: routing.Gates,
  valid: jax.Array,
  *,
  capacity: int,
  drop_free: bool = False,
  by_confidence: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Sum over each token's chosen experts of weight times expert, where the expert has room.

  Runs on the mesh of `jax.set_mesh`, or on one device without a mesh.

  Args:
    expert_fn: (parameters with a leading axis e, rows (e, c, d)) -> (e, c, d), row by row.
    params: tree whose leaves have the leading axis E.
    tokens: (N, d), N a multiple of the number of devices.
    gates: of the tokens.
    valid: (N,) bool; other tokens get 0 and give no gradient.
    capacity: C, see `routing.capacity`.
    drop_free: go round until every choice is served; such a result depends on neither the mesh nor
      the other tokens. It has no gradient.
    by_confidence: full experts drop their least probable tokens, not their last.

  Returns:
    (N, d) in the dtype of the experts' outputs, and which choices were served, (N, k) bool.

  Raises:
    ValueError: if the mesh cannot divide experts or tokens, or if C = 0 is to be drop-free.
  """
  num_experts = gates.logits.shape[-1]
  if drop_free and capacity == 0:
    raise ValueError('a capacity of 0 serves no token in any number of rounds')
  mesh = jax.sharding.get_abstract_mesh()
  local = functools.partial(
    _execute_local,
    expert_fn,
    num_experts=num_experts,
    capacity=capacity,
    drop_free=drop_free,
  )
  priority = gates.probabilities.max(-1) if by_confidence else None
  operands = (params, tokens, gates.weights, gates.experts, valid, priority)
  if mesh.empty:
    return local(*operands, axes=())
  if num_experts % mesh.shape['expert']:
    raise ValueError(
      f'{num_experts} experts cannot be shared by mesh.expert={mesh.shape["expert"]} devices evenly'
    )
  if tokens.shape[0] % mesh.size:
    raise ValueError(f'{tokens.shape[0]} tokens cannot be shared by {mesh.size} devices evenly')
  return jax.shard_map(
    functools.partial(local, axes=('data', 'expert')),
    in_specs=(_EXPERTS, *(_TOKENS,) * 5),
    out_specs=(_TOKENS, _TOKENS),
  )(*operands)


def _execute_local(
  expert_fn,
  params,
  tokens,
  weights,
  experts,
  valid,
  priority,
  *,
  num_experts,
  capacity,
  drop_free,
  axes,
):
  """`execute` for the tokens of one device; `axes` are the mesh axes, () without a mesh."""

  def serve(waiting):
    wanted = jnp.where(waiting, experts, num_experts)
    plan = routing.make_plan(wanted, num_experts, capacity, priority)
    rows = tokens.at[plan.source].get(mode='fill', fill_value=0)
    rows = rows.reshape(num_experts, capacity, tokens.shape[-1])
    y = _on_experts(expert_fn, params, rows, axes)
    y = y.at[plan.slot].get(mode='fill', fill_value=0)
    y = jnp.where(plan.keep[..., None], weights[..., None].astype(y.dtype) * y, 0)
    return y.sum(1), plan.keep

  waiting = jnp.broadcast_to(valid[:, None], experts.shape)
  if capacity == 0:
    return jnp.zeros_like(tokens), jnp.zeros_like(waiting)
  output, served = serve(waiting)
  if not drop_free:
    return output, served

  def left(waiting):
    count = waiting.sum()
    return lax.psum(count, axes) if axes else count

  def again(carry):
    output, waiting, _ = carry
    more, served = serve(waiting)
    waiting = waiting & ~served
    return output + more, waiting, left(waiting)

  # All devices go the same number of rounds, or they would miss each other in the exchange.
  rest = waiting & ~served
  output, _, _ = lax.while_loop(lambda c: c[2] > 0, again, (output, rest, left(rest)))
  return output, waiting


def _on_experts(expert_fn, params, rows, axes):
  """Rows (E, C, d) of this device through the experts, wherever those live -> (E * C, d)."""
  num_experts, capacity, width = rows.shape
  if not axes:
    return expert_fn(params, rows).reshape(num_experts * capacity, width)
  devices = lax.axis_size('expert')
  exchange = functools.partial(lax.all_to_all, axis_name='expert', split_axis=0, concat_axis=0)
  mine = num_experts // devices
  rows = exchange(rows.reshape(devices, mine, capacity, width))
  y = expert_fn(params, jnp.moveaxis(rows, 0, 1).reshape(mine, devices * capacity, width))
  y = jnp.moveaxis(y.reshape(mine, devices, capacity, width), 1, 0)
  return exchange(y).reshape(num_experts * capacity, width)
