"""What a train step reads and writes: its shapes, where it lives, and how it begins."""

from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mome_jax.models import MoME
from mome_jax.text.t5 import TextEncoder
from mome_jax.training import sharding


class Optimizer(Protocol):
  """What a state needs of an `optax.GradientTransformation`."""

  def init(self, params: Any, /) -> Any:
    """Its state for fresh parameters."""


class TrainState(flax.struct.PyTreeNode):
  """What a step reads and writes.

  Attributes:
    step: () int32, steps done.
    params: {'model': ..., 'text': ...}; 'text' is absent when the text is frozen.
    ema: running average of params, used for evaluation.
    opt_state: of the optax optimizer.
  """

  step: jax.Array
  params: Any
  ema: Any
  opt_state: Any


def init_params(
  config: ConfigDict, model: MoME, text_encoder: TextEncoder | None, key: jax.Array
) -> dict[str, Any]:
  """Fresh {'model': ..., 'text': ...}; without 'text' where `text_encoder` is None."""
  stride = model.backbone.stride
  image = jnp.zeros((1, 2 * stride, 2 * stride, 2 * stride, len(config.data.windows)))
  model_key, text_key = jax.random.split(key)
  params = {'model': model.init(model_key, image, jnp.zeros((1, config.text.d_model)))['params']}
  if text_encoder is not None:
    ids = jnp.ones((1, 2), jnp.int32)
    params['text'] = text_encoder.init(text_key, ids, ids > 0)['params']
  return params


def abstract_state(
  config: ConfigDict,
  mesh: Mesh,
  model: MoME,
  text_encoder: TextEncoder | None,
  optimizer: Optimizer,
) -> TrainState:
  """The train state as ShapeDtypeStructs with shardings; see `init_state`."""
  create = _make_create(config, model, text_encoder, optimizer)
  shapes = jax.eval_shape(create, _init_key(config))
  shardings = sharding.tree_shardings(mesh, shapes, fsdp=config.mesh.fsdp)
  return jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
  )


def init_state(
  config: ConfigDict,
  mesh: Mesh,
  model: MoME,
  text_encoder: TextEncoder | None,
  optimizer: Optimizer,
) -> tuple[TrainState, TrainState]:
  """Fresh state, every leaf born on its devices, and the same tree of shapes with shardings.

  Args:
    config: the whole config.
    mesh: device mesh.
    model: from `build_model`.
    text_encoder: from `build_text_encoder`; its parameters train along. None: the text is frozen.
    optimizer: from `make_optimizer`.
  """
  abstract = abstract_state(config, mesh, model, text_encoder, optimizer)
  create = _make_create(config, model, text_encoder, optimizer)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(create, out_shardings=shardings)(_init_key(config)), abstract


def _make_create(config, model, text_encoder, optimizer):
  """create(key) -> fresh TrainState."""

  def create(key):
    params = init_params(config, model, text_encoder, key)
    return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

  return create


def _init_key(config) -> jax.Array:
  # Not threefry: on the CPU its unrolled rounds take longer to compile than the train step.
  return jax.random.key(config.seed, impl='rbg')
