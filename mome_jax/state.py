"""Train state, optimizer and learning-rate schedule."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from mome_jax import sharding


@flax.struct.dataclass
class TrainState:
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


def learning_rate(config) -> optax.Schedule:
  """Linear warm-up over `warmup_steps`, then cosine to zero at `steps`."""
  return optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
  )


def make_optimizer(config) -> optax.GradientTransformation:
  """AdamW with clipping by global norm; biases, norms and scalars do not decay.

  Args:
    config: `config.train`.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config),
      weight_decay=config.weight_decay,
      mask=_decays,
    ),
    optax.masked(optax.scale(config.generator_rate), _generates_weights),
  )


def _decays(params):
  """True for weights; the biases of a bank are matrices too."""
  return jax.tree_util.tree_map_with_path(
    lambda path, p: p.ndim > 1 and not path[-1].key.startswith('bias'), params
  )


def _generates_weights(params):
  """True for what turns text and context into weights, False for the text encoder and the image."""

  def generates(path, _):
    top, name = path[0].key, path[1].key
    return top == 'model' and name != 'backbone' and not name.startswith('expert_')

  return jax.tree_util.tree_map_with_path(generates, params)


def init_params(config, model, text_encoder, key: jax.Array):
  """Fresh {'model': ..., 'text': ...}; without 'text' where `text_encoder` is None."""
  stride = model.backbone.stride
  image = jnp.zeros((1, 2 * stride, 2 * stride, 2 * stride, len(config.data.windows)))
  model_key, text_key = jax.random.split(key)
  params = {'model': model.init(model_key, image, jnp.zeros((1, config.text.d_model)))['params']}
  if text_encoder is not None:
    ids = jnp.ones((1, 2), jnp.int32)
    params['text'] = text_encoder.init(text_key, ids, ids > 0)['params']
  return params


def abstract_state(config, mesh, model, text_encoder, optimizer) -> TrainState:
  """The train state as ShapeDtypeStructs with shardings; see `init_state`."""
  create = _make_create(config, model, text_encoder, optimizer)
  shapes = jax.eval_shape(create, _init_key(config))
  shardings = sharding.tree_shardings(mesh, shapes, fsdp=config.mesh.fsdp)
  return jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
  )


def init_state(config, mesh, model, text_encoder, optimizer) -> tuple[TrainState, TrainState]:
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
