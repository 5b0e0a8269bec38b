"""Fusion of maps of several scales, voxel by voxel.

Weights and sums are float32. Maps may come in bfloat16: they are interpolated and kept as such.
"""

import functools
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from mome_jax.ops.precision import at_least_float32
from mome_jax.ops.resize import upsample


def scale_weights(router_logits: Sequence[jax.Array], top_k: int = 0) -> list[jax.Array]:
  """Softmax over scales at the finest resolution, optionally of the top-k scales only.

  Args:
    router_logits: L arrays (..., D / 2^l, H / 2^l, W / 2^l) float32 or bfloat16, finest first.
    top_k: how many scales each class uses at a voxel; 0 uses all. Ties go to the finer scale.
      The kept weights are renormalised for k >= 2; for k = 1 they are not, since a weight that is
      always 1 would leave the router without gradient.

  Returns:
    L arrays (..., D, H, W) float32.
  """
  logits = _wide(_at_finest(router_logits))
  log_total = _log_total(logits, top_k)
  return [_weight(logits, i, log_total, top_k) for i in range(len(logits))]


def _at_finest(maps: Sequence[jax.Array]) -> list[jax.Array]:
  """Every map at the resolution of the first.

  Behind a barrier, or XLA would interpolate again inside every later loop that reads the result.
  """
  return lax.optimization_barrier([upsample(m, maps[0].shape[-1] // m.shape[-1]) for m in maps])


def _wide(maps: Sequence[jax.Array]) -> list[jax.Array]:
  return [m.astype(at_least_float32(m.dtype)) for m in maps]


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
  return highest + jnp.log(_sum(odds))


def _weight(logits: Sequence[jax.Array], i: int, log_total: jax.Array, top_k: int) -> jax.Array:
  weight = jnp.exp(logits[i] - log_total)
  return jnp.where(_rank(logits, i) < top_k, weight, 0.0) if 0 < top_k < len(logits) else weight


def _rank(logits: Sequence[jax.Array], i: int) -> jax.Array:
  """How many scales come before scale i at each voxel; of equal ones the finer comes first."""
  before = [logits[j] >= logits[i] for j in range(i)]
  before += [logits[j] > logits[i] for j in range(i + 1, len(logits))]
  return sum(before, jnp.zeros((), jnp.int32))


def fuse_plain(
  scores: Sequence[jax.Array], router_logits: Sequence[jax.Array], top_k: int = 0
) -> jax.Array:
  """`fuse` by its definition, with the gradients that XLA makes."""
  weights = scale_weights(router_logits, top_k)
  return _sum(w * s for w, s in zip(weights, _wide(_at_finest(scores)), strict=True))


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(operator.add, terms)


def mean_of_scales(scores: Sequence[jax.Array]) -> jax.Array:
  """Mean of the experts' class logits at the finest resolution: (..., D, H, W) float32.

  Args:
    scores: L arrays (..., D / 2^l, H / 2^l, W / 2^l) float32 or bfloat16, finest first.
  """
  return _sum(_wide(_at_finest(scores))) / len(scores)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fuse(
  scores: Sequence[jax.Array], router_logits: Sequence[jax.Array], top_k: int = 0
) -> jax.Array:
  """Weighted average of the experts' class logits, at the finest resolution.

  The gradient keeps the maps as they came, the result and one more map, and interpolates again:
  `ds_l = up^T(w_l dy)`, `da_l = up^T(w_l (up s_l - y) dy)`, where s_l counts as 0 at voxels whose
  top-k leaves scale l out.

  Args:
    scores: L arrays (..., D / 2^l, H / 2^l, W / 2^l) float32 or bfloat16, finest first; class
      logits.
    router_logits: L arrays of the same shapes.
    top_k: see `scale_weights`.

  Returns:
    (..., D, H, W) float32.

  Raises:
    ValueError: if the pyramids differ in length or in shape.
  """
  return _fuse_forward(scores, router_logits, top_k)[0]


def _fuse_forward(scores, router_logits, top_k):
  shapes, expected = [s.shape for s in scores], [a.shape for a in router_logits]
  if shapes != expected:
    raise ValueError(f'scores {shapes} and router logits {expected} differ in shape')
  logits, fine = _wide(_at_finest(router_logits)), _wide(_at_finest(scores))
  log_total = _log_total(logits, top_k)
  fused = _sum(_weight(logits, i, log_total, top_k) * s for i, s in enumerate(fine))
  return fused, (scores, router_logits, fused, log_total)


def _fuse_backward(top_k, residuals, d_fused):
  scores, router_logits, fused, log_total = residuals
  logits, fine = _wide(_at_finest(router_logits)), _wide(_at_finest(scores))
  d_scores, d_logits = [], []
  for i, (s, a) in enumerate(zip(fine, router_logits, strict=True)):
    d_score = _weight(logits, i, log_total, top_k) * d_fused
    if top_k == 1 < len(logits):  # the weights of the scales left out still divide the chosen one
      share = jnp.exp(logits[i] - log_total) * d_fused
      d_logit = d_score * s - share * fused
    else:
      d_logit = d_score * (s - fused)
    down = jax.linear_transpose(lambda x, f=s.shape[-1] // a.shape[-1]: upsample(x, f), a)
    kept = d_score.astype(scores[i].dtype), d_logit.astype(a.dtype)
    d_score, d_logit = lax.optimization_barrier(kept)
    d_scores += down(d_score)
    d_logits += down(d_logit)
  return d_scores, d_logits


fuse.defvjp(_fuse_forward, _fuse_backward)
