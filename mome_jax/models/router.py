"""Text-guided router across scales, and the fusion it drives. Everything here is float32."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax.models import layers

FINEST_WEIGHT = 0.9  # the network starts near the baseline, which uses the finest scale alone


class Router(nn.Module):
  """Router logits: how much each class trusts each scale, voxel by voxel.

  The class's text and the scan's context make a query, the features of a scale its keys:
  `a_l,k(v) = <q_k, r_l(v)> / sqrt(d_r) + <u_l, t_k> + b_l`.
  """

  features: int = 32  # d_r

  @nn.compact
  def __call__(
    self, pyramid: Sequence[jax.Array], classes: jax.Array, context: jax.Array
  ) -> list[jax.Array]:
    """See the class.

    Args:
      pyramid: L arrays (B, D_l, H_l, W_l, C_l), finest first.
      classes: (K, d) float32, t of the prompts.
      context: (B, d) float32, g of the scan.

    Returns:
      L arrays (B, K, D_l, H_l, W_l) float32.
    """
    shape = (context.shape[0], *classes.shape)
    pairs = jnp.concatenate(
      [jnp.broadcast_to(classes[None], shape), jnp.broadcast_to(context[:, None], shape)], -1
    )
    query = nn.Dense(self.features, name='query')(pairs) / math.sqrt(self.features)
    gates = []
    for level, x in enumerate(pyramid):
      key = nn.Dense(self.features, use_bias=False, name=f'key_{level}')(
        layers.GroupNorm(name=f'norm_{level}')(x)
      )
      prior = self.param(f'prior_{level}', nn.initializers.zeros, (classes.shape[-1],))
      start = (
        math.log(FINEST_WEIGHT / (1 - FINEST_WEIGHT) * (len(pyramid) - 1)) if level == 0 else 0.0
      )
      bias = self.param(f'bias_{level}', nn.initializers.constant(start), ())
      gate = jnp.einsum('bkr,bdhwr->bkdhw', query, key)
      gates.append(gate + (classes @ prior)[None, :, None, None, None] + bias)
    return gates


def scale_weights(gates: Sequence[jax.Array], top_k: int = 0) -> list[jax.Array]:
  """Softmax over scales at the finest resolution, optionally of the top-k scales only.

  Args:
    gates: L arrays (B, K, D / 2^l, H / 2^l, W / 2^l) float32, finest first.
    top_k: how many scales each class uses at a voxel; 0 uses all. Ties go to the finer scale.
      The kept weights are renormalised for k >= 2; for k = 1 they are not, since a weight that is
      always 1 would leave the router without gradient.

  Returns:
    L arrays (B, K, D, H, W) float32.
  """
  # Lists, not an array with an axis of scales: every operation then fuses into one loop.
  logits = [layers.upsample(g, gates[0].shape[-1] // g.shape[-1]) for g in gates]
  highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
  odds = [jnp.exp(a - highest) for a in logits]
  if not top_k or top_k >= len(gates):
    kept = total = odds
  else:
    kept = [jnp.where(_rank(logits, i) < top_k, o, 0.0) for i, o in enumerate(odds)]
    total = odds if top_k == 1 else kept
  scale = 1 / sum(total)
  return [o * scale for o in kept]


def _rank(logits: Sequence[jax.Array], i: int) -> jax.Array:
  """How many scales come before scale i at each voxel; of equal ones the finer comes first."""
  before = [logits[j] >= logits[i] for j in range(i)]
  return sum(before + [logits[j] > logits[i] for j in range(i + 1, len(logits))], jnp.int32(0))


def fuse(scores: Sequence[jax.Array], gates: Sequence[jax.Array], top_k: int = 0) -> jax.Array:
  """Weighted average of the experts' class logits, at the finest resolution.

  Args:
    scores: L arrays (B, K, D / 2^l, H / 2^l, W / 2^l) float32, finest first; class logits.
    gates: L arrays of the same shapes; router logits.
    top_k: see `scale_weights`.

  Returns:
    (B, K, D, H, W) float32.

  Raises:
    ValueError: if the pyramids differ in length or in shape.
  """
  if [s.shape for s in scores] != [g.shape for g in gates]:
    raise ValueError(
      f'scores {[s.shape for s in scores]} and gates {[g.shape for g in gates]} differ in shape'
    )
  weights = scale_weights(gates, top_k)
  fine = [layers.upsample(s, scores[0].shape[-1] // s.shape[-1]) for s in scores]
  return sum(w * s for w, s in zip(weights, fine, strict=True))
