"""Floating-point operations of a program, counted from its jaxpr.

XLA's own count takes the body of a loop once, however often it runs.
"""

import math
from typing import Any

from jax.extend import core


def count_flops(jaxpr: Any, platform: str = 'tpu') -> float:
  """Multiplications and additions of all matrix products and convolutions, over all devices.

  The body of a `scan` counts as often as it runs; that of a `while` once, since nobody knows.
  Of a `lax.platform_dependent` the branch of `platform` counts, of another branching the largest.

  Args:
    jaxpr: of the whole program, as `jax.jit(f).trace(...).jaxpr`.
    platform: 'cpu', 'tpu' or 'cuda'.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  total, chosen = 0.0, {}
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == 'platform_index':
      chosen[eqn.outvars[0]] = _branch(eqn.params['platforms'], platform)
    elif name == 'dot_general':
      total += _dot(eqn)
    elif name == 'conv_general_dilated':
      total += _convolution(eqn)
    elif name == 'cond':
      branches, index = eqn.params['branches'], eqn.invars[0]
      if not isinstance(index, core.Literal) and index in chosen:
        branches = [branches[chosen[index]]]
      total += max(count_flops(branch, platform) for branch in branches)
    else:
      inner = sum(count_flops(j, platform) for j in _inner_jaxprs(eqn.params))
      if name == 'scan':
        inner *= eqn.params['length']
      elif name == 'shard_map':
        inner *= math.prod(eqn.params['mesh'].shape.values())
      total += inner
  return total


def _inner_jaxprs(params):
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
        yield item


def _branch(platforms, platform: str) -> int:
  """Index of the branch for `platform`; the one for None is the default."""
  for index, names in enumerate(platforms):
    if names is not None and platform in names:
      return index
  return platforms.index(None)


def _dot(eqn) -> float:
  (contracted, _), _ = eqn.params['dimension_numbers']
  depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth


def _convolution(eqn) -> float:
  kernel = eqn.invars[1].aval.shape
  out_channels = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_channels
