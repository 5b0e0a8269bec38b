"""Text-guided router across scales. Everything here is float32."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mome_jax import ops

FINEST_WEIGHT = 0.9  # the network starts near the baseline, which uses the finest scale alone


@flax.struct.dataclass
class Gate:
  """How much a class trusts one scale: `<weight, F(v)> + bias` at every voxel v.

  Attributes:
    weight: (..., C_l) float32.
    bias: (...) float32.
  """

  weight: jax.Array
  bias: jax.Array

  def __call__(self, features: jax.Array) -> jax.Array:
    """Router logits of one class: weight (B, C_l), features (B, D, H, W, C_l) -> (B, D, H, W)."""
    product = ops.exact('bc,bdhwc->bdhw', self.weight, features.astype(jnp.float32))
    return product + self.bias[:, None, None, None]

  def of_all(self, features: jax.Array) -> jax.Array:
    """Router logits of all classes: weight (B, K, C_l), features as above -> (B, K, D, H, W).

    Features in bfloat16 are multiplied as they are, with the weights in two parts of 8 bits each:
    what remains of a weight, 2^-17, is below the rounding of the features.
    """
    product = functools.partial(
      jnp.einsum, 'bkc,bdhwc->bkdhw', preferred_element_type=jnp.float32, precision=ops.EXACT
    )
    if features.dtype == jnp.bfloat16:
      # Not by a conversion there and back, which the compiler may leave out.
      high = jax.lax.reduce_precision(self.weight, exponent_bits=8, mantissa_bits=7)
      parts = [part.astype(jnp.bfloat16) for part in (high, self.weight - high)]
      logits = sum(product(part, features) for part in parts)
    else:
      logits = product(self.weight, features.astype(jnp.float32))
    return logits + self.bias[..., None, None, None]


INPUTS = ('text+vision', 'text', 'vision', 'uniform')


class Router(nn.Module):
  """Makes the gates: how much each class trusts each scale, from voxel to voxel.

  The class's text and the scan's context make a query, the features of a scale its keys:
  `a_l,k(v) = <q_k, W_l GN(F_l(v))> / sqrt(d_r) + <u_l, t_k> + b_l`. That is linear in F_l(v): with
  W_l and the normalisation taken over to the query's side, no key is ever made.

  Attributes:
    features: d_r.
    inputs: what decides, for ablations: 'text+vision' as above; 'text', without the first product;
      'vision', with a query made of g alone and without u_l; 'uniform', a = 0.
    equal_start: whether the biases start with equal weights of all scales, not with
      `FINEST_WEIGHT` on the finest.
  """

  features: int = 32
  inputs: str = 'text+vision'
  equal_start: bool = False

  @nn.compact
  def __call__(
    self, pyramid: Sequence[jax.Array], classes: jax.Array, context: jax.Array
  ) -> list[Gate]:
    """See the class.

    Args:
      pyramid: L arrays (B, D_l, H_l, W_l, C_l), finest first.
      classes: (K, d) float32, t of the prompts.
      context: (B, d) float32, g of the scan.

    Returns:
      L gates: weight (B, K, C_l), bias (B, K).
    """
    shape = (context.shape[0], *classes.shape)
    nothing = [Gate(jnp.zeros((*shape[:2], x.shape[-1])), jnp.zeros(shape[:2])) for x in pyramid]
    if self.inputs == 'uniform':
      return nothing
    text, vision = (word in self.inputs for word in ('text', 'vision'))
    products = self._products(pyramid, classes * text, context) if vision else nothing
    gates = []
    for level, gate in enumerate(products):
      start = 0.0
      if level == 0 and not self.equal_start:
        start = math.log(FINEST_WEIGHT / (1 - FINEST_WEIGHT) * (len(pyramid) - 1))
      bias = self.param(f'bias_{level}', nn.initializers.constant(start), ())
      if text:
        prior = self.param(f'prior_{level}', nn.initializers.zeros, (classes.shape[-1],))
        bias = bias + ops.exact('kd,d->k', classes, prior)
      gates.append(Gate(gate.weight, gate.bias + bias))
    return gates

  def _products(
    self, pyramid: Sequence[jax.Array], classes: jax.Array, context: jax.Array
  ) -> list[Gate]:
    """The gates of query times key alone."""
    shape = (context.shape[0], *classes.shape)
    pairs = jnp.concatenate(
      [jnp.broadcast_to(classes[None], shape), jnp.broadcast_to(context[:, None], shape)], -1
    )
    query = nn.Dense(self.features, precision=ops.EXACT, name='query')(pairs)
    query = query / math.sqrt(self.features)
    gates = []
    for level, x in enumerate(pyramid):
      multiplier, offset = ops.GroupNorm(name=f'norm_{level}').affine(x)
      key = self.param(f'key_{level}', nn.initializers.lecun_normal(), (x.shape[-1], self.features))
      weight = ops.exact('bkr,cr->bkc', query, key)
      bias = ops.exact('bkc,bc->bk', weight, offset)
      gates.append(Gate(weight * multiplier[:, None], bias))
    return gates
