"""Maps of every class: what its head reads at each scale, mixed as its gates say.

They are most of what a step holds and moves, so that a CPU and a TPU each have their own order.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from mome_jax import ops
from mome_jax.models import heads, router

SCOPE = 'class_maps'  # the jax.named_scope of what is computed for every class and voxel


@flax.struct.dataclass
class Sources:
  """What the maps are made of.

  Attributes:
    theta: (B, K, 153) float32, weights of the class heads.
    gates: L of them, or none for one scale.
    features: L arrays (B, D_l, H_l, W_l, C_l).
    outputs: L arrays (B, 8, D_l, H_l, W_l), from the experts.
    share: () float32 of the mixture in what departs from an anchor; None without one.
  """

  theta: jax.Array
  gates: tuple[router.Gate, ...]
  features: tuple[jax.Array, ...]
  outputs: tuple[jax.Array, ...]
  share: jax.Array | None


class Maps(NamedTuple):
  """Maps of all classes, class-first, float32.

  Attributes:
    logits: (B, K, D, H, W).
    scores: L arrays (B, K, D_l, H_l, W_l), what the heads read at each scale.
    router_logits: L arrays of the same shapes; none for one scale.
  """

  logits: jax.Array
  scores: list[jax.Array]
  router_logits: list[jax.Array]


class Options(NamedTuple):
  """See the attributes of `MoME`.

  Attributes:
    top_k: scales each class uses at a voxel.
    anchor: what the mixture departs from.
    activation: of the class heads.
    chunk: classes whose maps are made at the same time.
    router_apart: whether the scores get the gradient of the anchor alone.
  """

  top_k: int
  anchor: str
  activation: str
  chunk: int
  router_apart: bool = False


def make_maps(sources: Sources, options: Options) -> Maps:
  """The maps of all classes, `options.chunk` classes at a time.

  Checkpointed: neither the heads' hidden layers nor the upsampled maps of all classes and scales
  are ever held together. On a TPU the maps of a network in bfloat16 are in bfloat16 too, between
  products and sums in float32.
  """
  with jax.named_scope(SCOPE):
    return lax.platform_dependent(
      sources,
      tpu=functools.partial(maps_together, options=options),
      default=functools.partial(maps_by_class, options=options),
    )


def maps_by_class(sources: Sources, options: Options) -> Maps:
  """`make_maps` as a loop over classes that makes every map of a class from the features."""

  @jax.checkpoint
  def one_class(generated):
    theta, gates = generated
    scores = [heads.apply_head(theta, z, options.activation) for z in sources.outputs]
    pairs = zip(gates, sources.features, strict=bool(gates))
    router_logits = [gate(x) for gate, x in pairs]
    return _mix(scores, router_logits, sources.share, options), scores, router_logits

  by_class = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (sources.theta, list(sources.gates)))
  maps = lax.map(one_class, by_class, batch_size=options.chunk)
  return Maps(*jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), maps))


def maps_together(sources: Sources, options: Options) -> Maps:
  """`make_maps` with all classes in each product over channels.

  A product of one class would feed a TPU's matrix unit with one row of 128, and read all features
  anew. Nothing is stacked in a loop: the chunks are joined once.
  """
  dtype = sources.outputs[0].dtype
  pairs = zip(sources.gates, sources.features, strict=bool(sources.gates))
  router_logits = [gate.of_all(x).astype(dtype) for gate, x in pairs]

  @jax.checkpoint
  def some(theta, router_logits, outputs, share):
    scores = [heads.apply_heads(theta, z, options.activation) for z in outputs]
    return _mix(scores, router_logits, share, options), scores

  parts = []
  for start in range(0, sources.theta.shape[1], options.chunk):
    part = lambda x, i=start: x[:, i : i + options.chunk]
    logits = [part(a) for a in router_logits]
    parts.append(some(part(sources.theta), logits, sources.outputs, sources.share))
  logits, scores = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *parts)
  wide = lambda maps: [m.astype(jnp.float32) for m in maps]
  return Maps(logits, wide(scores), wide(router_logits))


def _mix(
  scores: Sequence[jax.Array],
  router_logits: Sequence[jax.Array],
  share: jax.Array | None,
  options: Options,
) -> jax.Array:
  if not router_logits:
    return scores[0].astype(jnp.float32)
  reads = lax.stop_gradient if options.router_apart else lambda x: x
  mixture = ops.fuse(reads(scores), router_logits, options.top_k)
  if share is None:
    return mixture
  anchor = scores[0] if options.anchor == 'finest' else ops.mean_of_scales(scores)
  return anchor + share * (mixture - reads(anchor))
