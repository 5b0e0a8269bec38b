"""Text-guided router across scales, and the fusion it drives. Everything here is float32."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from mome_jax.ops import layers

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
    product = layers.exact('bc,bdhwc->bdhw', self.weight, features.astype(jnp.float32))
    return product + self.bias[:, None, None, None]


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
  """

  features: int = 32
  inputs: str = 'text+vision'

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
      start = (
        math.log(FINEST_WEIGHT / (1 - FINEST_WEIGHT) * (len(pyramid) - 1)) if level == 0 else 0.0
      )
      bias = self.param(f'bias_{level}', nn.initializers.constant(start), ())
      if text:
        prior = self.param(f'prior_{level}', nn.initializers.zeros, (classes.shape[-1],))
        bias = bias + layers.exact('kd,d->k', classes, prior)
      gates.append(gate.replace(bias=gate.bias + bias))
    return gates

  def _products(self, pyramid, classes, context) -> list[Gate]:
    """The gates of query times key alone."""
    shape = (context.shape[0], *classes.shape)
    pairs = jnp.concatenate(
      [jnp.broadcast_to(classes[None], shape), jnp.broadcast_to(context[:, None], shape)], -1
    )
    query = nn.Dense(self.features, precision=layers.EXACT, name='query')(pairs)
    query = query / math.sqrt(self.features)
    gates = []
    for level, x in enumerate(pyramid):
      multiplier, offset = layers.GroupNorm(name=f'norm_{level}').affine(x)
      key = self.param(f'key_{level}', nn.initializers.lecun_normal(), (x.shape[-1], self.features))
      weight = layers.exact('bkr,cr->bkc', query, key)
      bias = layers.exact('bkc,bc->bk', weight, offset)
      gates.append(Gate(weight * multiplier[:, None], bias))
    return gates


def scale_weights(gates: Sequence[jax.Array], top_k: int = 0) -> list[jax.Array]:
  """Softmax over scales at the finest resolution, optionally of the top-k scales only.

  Args:
    gates: L arrays (..., D / 2^l, H / 2^l, W / 2^l) float32, router logits, finest first.
    top_k: how many scales each class uses at a voxel; 0 uses all. Ties go to the finer scale.
      The kept weights are renormalised for k >= 2; for k = 1 they are not, since a weight that is
      always 1 would leave the router without gradient.

  Returns:
    L arrays (..., D, H, W) float32.
  """
  logits = _at_finest(gates)
  log_total = _log_total(logits, top_k)
  return [_weight(logits, i, log_total, top_k) for i in range(len(logits))]


def mix(features: Sequence[jax.Array], weights: Sequence[jax.Array]) -> jax.Array:
  """Weighted average of the experts' features, at the finest resolution.

  Args:
    features: L arrays (B, C, D / 2^l, H / 2^l, W / 2^l), finest first.
    weights: L arrays (B, D, H, W) float32, from `scale_weights`.

  Returns:
    (B, C, D, H, W) float32.
  """
  fine = [layers.upsample(f, weights[0].shape[-1] // f.shape[-1]) for f in features]
  return sum(w[:, None] * f for w, f in zip(weights, fine, strict=True))


def _at_finest(maps: Sequence[jax.Array]) -> list[jax.Array]:
  """Every map at the resolution of the first.

  Behind a barrier, or XLA would interpolate again inside every later loop that reads the result.
  """
  return lax.optimization_barrier(
    [layers.upsample(m, maps[0].shape[-1] // m.shape[-1]) for m in maps]
  )


def _log_total(logits: Sequence[jax.Array], top_k: int) -> jax.Array:
  """Logarithm of what divides exp(logits) to give the weights."""
  highest = lax.stop_gradient(functools.reduce(jnp.maximum, logits))
  renormalise = 1 < top_k < len(logits)
  odds = [
    jnp.where(_rank(logits, i) < top_k, jnp.exp(a - highest), 0.0)
    if renormalise
    else jnp.exp(a - highest)
    for i, a in enumerate(logits)
  ]
  return highest + jnp.log(sum(odds))


def _weight(logits: Sequence[jax.Array], i: int, log_total: jax.Array, top_k: int) -> jax.Array:
  weight = jnp.exp(logits[i] - log_total)
  return jnp.where(_rank(logits, i) < top_k, weight, 0.0) if 0 < top_k < len(logits) else weight


def _rank(logits: Sequence[jax.Array], i: int) -> jax.Array:
  """How many scales come before scale i at each voxel; of equal ones the finer comes first."""
  before = [logits[j] >= logits[i] for j in range(i)]
  return sum(before + [logits[j] > logits[i] for j in range(i + 1, len(logits))], jnp.int32(0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fuse(scores: Sequence[jax.Array], gates: Sequence[jax.Array], top_k: int = 0) -> jax.Array:
  """Weighted average of the experts' class logits, at the finest resolution.

  The gradient keeps the maps as they came, the result and one more map, and interpolates again:
  `ds_l = up^T(w_l dy)`, `da_l = up^T(w_l (up s_l - y) dy)`, where s_l counts as 0 at voxels whose
  top-k leaves scale l out.

  Args:
    scores: L arrays (..., D / 2^l, H / 2^l, W / 2^l) float32, finest first; class logits.
    gates: L arrays of the same shapes; router logits.
    top_k: see `scale_weights`.

  Returns:
    (..., D, H, W) float32.

  Raises:
    ValueError: if the pyramids differ in length or in shape.
  """
  return _fuse_forward(scores, gates, top_k)[0]


def _fuse_forward(scores, gates, top_k):
  if [s.shape for s in scores] != [g.shape for g in gates]:
    raise ValueError(
      f'scores {[s.shape for s in scores]} and gates {[g.shape for g in gates]} differ in shape'
    )
  logits, fine = _at_finest(gates), _at_finest(scores)
  log_total = _log_total(logits, top_k)
  fused = sum(_weight(logits, i, log_total, top_k) * s for i, s in enumerate(fine))
  return fused, (scores, gates, fused, log_total)


def _fuse_backward(top_k, residuals, d_fused):
  scores, gates, fused, log_total = residuals
  logits, fine = _at_finest(gates), _at_finest(scores)
  d_scores, d_gates = [], []
  for i, (s, a) in enumerate(zip(fine, gates, strict=True)):
    d_score = _weight(logits, i, log_total, top_k) * d_fused
    if top_k == 1 < len(gates):  # the weights of the scales left out still divide the chosen one
      share = jnp.exp(logits[i] - log_total) * d_fused
      d_gate = d_score * s - share * fused
    else:
      d_gate = d_score * (s - fused)
    down = jax.linear_transpose(lambda x, f=s.shape[-1] // a.shape[-1]: layers.upsample(x, f), a)
    d_score, d_gate = lax.optimization_barrier((d_score, d_gate))
    d_scores += down(d_score)
    d_gates += down(d_gate)
  return d_scores, d_gates


fuse.defvjp(_fuse_forward, _fuse_backward)
