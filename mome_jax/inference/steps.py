"""Predict steps: pure functions of parameters, text and windows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mome_jax import ops
from mome_jax.models import MoME
from mome_jax.models.mome import Sight, mixture_share

Params = Mapping[str, Any]  # of the state: {'model': ..., 'text': ...}


def make_predict_step(model: MoME) -> Callable[..., jax.Array]:
  """predict_step(params, text (K, d_t), windows (B, D, H, W, C)) -> logits (B, D, H, W, K).

  A model with banks of sparse experts also needs `trained_text` (J, d_t), the embeddings of the
  default prompts of its training classes, where `text` holds other prompts.
  """

  def predict_step(
    params: Params, text: jax.Array, windows: jax.Array, trained_text: jax.Array | None = None
  ) -> jax.Array:
    return model.apply({'params': params['model']}, windows, text, trained_text)[0]

  return predict_step


def make_see_step(model: MoME) -> Callable[..., Sight]:
  """see_step(params, windows (B, D, H, W, C), trained_text) -> what `read_step` takes.

  `trained_text` is that of `make_predict_step`.
  """

  def see_step(params: Params, windows: jax.Array, trained_text: jax.Array | None = None) -> Sight:
    sight = model.apply({'params': params['model']}, windows, trained_text, method=MoME.see)
    return cast(Sight, sight)

  return see_step


def make_read_step(model: MoME) -> Callable[..., jax.Array]:
  """read_step(params, sight, text (K, d_t)) -> logits (B, K, D, H, W), one class after the other.

  After a see step those of a predict step; but any number of prompts is read with one program
  of few of them, and the backbone runs once.
  """

  def read_step(params: Params, sight: Sight, text: jax.Array) -> jax.Array:
    logits = model.apply({'params': params['model']}, sight, text, method=MoME.read)
    return jnp.moveaxis(cast(jax.Array, logits), -1, 1)  # as the model made them: nothing moves

  return read_step


def make_routing_step(
  model: MoME,
) -> Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]:
  """A read step that also tells what the router did, summed over cells of voxels.

  routing_step(params, sight, text (K, d_t), counted (B, D, H, W) float32 in [0, 1], placement) ->
  logits (B, K, D, H, W) and a dict, all float32:
    'maps' (K, B, L + 1, d, h, w): the shares of the scales, and their entropy as a fraction of
      log L; sums over the voxels of each cell of the share or entropy times `counted`;
    'sums' (K, L + 2): over the voxels where the class's logit is above 0, sums of the shares, the
      entropy and 1, times `counted`.
  `placement` is (B, d, D), (B, h, H) and (B, w, W) float32, 1 where a voxel lies in a cell. With
  overlapping windows, `counted` is the part of a voxel that each of them has.

  Args:
    model: from `build_model`, with at least two scales.
  """

  def routing_step(
    params: Params,
    sight: Sight,
    text: jax.Array,
    counted: jax.Array,
    placement: Sequence[jax.Array],
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    logits, aux = model.apply({'params': params['model']}, sight, text, method=MoME.explain)
    share = None
    if model.anchor != 'none':
      share = mixture_share(params['model']['mixture_share'])

    def one_class(maps: tuple[jax.Array, list[jax.Array]]) -> dict[str, jax.Array]:
      logits, router_logits = maps
      weights = jnp.stack(ops.scale_weights(router_logits, model.top_k), 1)  # (B, L, D, H, W)
      if share is not None:
        weights = _from_anchor(weights, model.anchor, share)
      # With top_k = 1 they add up to less than 1; what a class trusts is a share all the same.
      weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
      part = jnp.clip(weights, 1e-6, 1)
      entropy = -(part * jnp.log(part)).sum(1, keepdims=True) / np.log(weights.shape[1])
      told = jnp.concatenate([weights, entropy], 1)
      cells = ops.exact('bldhw,bzw->bldhz', told * counted[:, None], placement[2])
      cells = ops.exact('bldhz,byh->bldyz', cells, placement[1])
      cells = ops.exact('bldyz,bxd->blxyz', cells, placement[0])
      inside = jnp.where(logits > 0, counted, 0)
      sums = [(told * inside[:, None]).sum((0, 2, 3, 4)), inside.sum()[None]]
      return {'maps': cells, 'sums': jnp.concatenate(sums)}

    # One class at a time: the weights of all scales are the largest arrays here.
    logits = jnp.moveaxis(logits, -1, 1)
    by_class = jax.tree.map(lambda maps: jnp.moveaxis(maps, 1, 0), (logits, aux['router_logits']))
    return logits, jax.lax.map(one_class, by_class)

  return routing_step


def _from_anchor(weights: jax.Array, anchor: str, share: jax.Array) -> jax.Array:
  """Weights (B, L, D, H, W) of a mixture that has a share of the logits, its anchor the rest."""
  scales = weights.shape[1]
  start = jnp.eye(scales)[0] if anchor == 'finest' else jnp.full(scales, 1 / scales)
  start = start.astype(weights.dtype)[:, None, None, None]
  return start + share * (weights - start)
