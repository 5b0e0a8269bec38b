"""What the parameters of a model belong to, and how far each group has moved."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def group(path: Sequence[Any]) -> str:
  """What a parameter belongs to, by its path in {'model': ..., 'text': ...}.

  Returns:
    'backbone', 'text_encoder'; 'experts', 'banks', of single scales; 'generator', text and context
    to heads; of the router 'router_biases' and 'router_priors', the rest is 'router_kernels';
    'mixture_share', of a mixture with an anchor.
  """
  top, name, *rest = (key.key for key in path)
  if top == 'text':
    return 'text_encoder'
  if name.startswith('expert_'):
    return 'banks' if rest[0] == 'bank' else 'experts'
  if name == 'router':
    kind = rest[0].split('_')[0]
    return {'bias': 'router_biases', 'prior': 'router_priors'}.get(kind, 'router_kernels')
  return name if name in ('backbone', 'mixture_share') else 'generator'


def distances(start: Any, params: Any) -> dict[str, jax.Array]:
  """How far each group of parameters is from `start`: 'moved/GROUP' -> () float32.

  The root mean square of the differences of all its numbers; groups as in `group`.
  """
  squares: dict[str, jax.Array] = {}
  counts: dict[str, int] = {}
  leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.subtract, params, start))
  for path, difference in leaves:
    name = f'moved/{group(path)}'
    squares[name] = squares.get(name, jnp.zeros(())) + jnp.sum(jnp.square(difference))
    counts[name] = counts.get(name, 0) + difference.size
  return {name: jnp.sqrt(squares[name] / counts[name]) for name in squares}
