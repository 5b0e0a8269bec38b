"""Train state, optimizer and learning-rate schedule."""

from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp

from mome_jax.training import sharding

if TYPE_CHECKING:  # imported where it is used: prediction does without it
  import optax


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


def learning_rate(config) -> 'optax.Schedule':
  """Linear warm-up over `warmup_steps`, then cosine to zero at `steps`."""
  import optax

  return optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
  )


def make_optimizer(config) -> 'optax.GradientTransformation':
  """AdamW with clipping by global norm; biases, norms and scalars do not decay.

  Adam moves every number by about one learning rate a step. How far that moves what the network
  computes depends on how many numbers are summed. In learning rates, by the L1 norm of the gradient
  of a generated weight or a gate's logit in the untrained `openkbp_cpu`:

  | of `params['model']`                                        |   a step | rate             |
  |-------------------------------------------------------------|---------:|------------------|
  | kernel of `text`, `context/project`, `router/query`         | 390-1100 | `generator_rate` |
  | kernel of `heads/controller`                                |      190 | `generator_rate` |
  | `router/key_L`                                              |   25-220 | `generator_rate` |
  | `router/prior_L`                                            |      110 | `mixture_rate`   |
  | `router/bias_L`, `mixture_share`                            |        1 | `mixture_rate`   |
  | biases of those kernels, scale and bias of `context/norm`, `router/norm_L` | 1-12 | 1     |

  A prior at the full rate moves its logit as far as the query does at 0.1. Backbone, text encoder,
  experts and banks generate nothing and train at 1.

  Args:
    config: `config.train`.
  """
  import optax

  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config),
      weight_decay=config.weight_decay,
      mask=_decays,
    ),
    optax.masked(_scale_by_rates(config), _has_a_rate),
  )


def _decays(params):
  """True for weights; the biases of a bank are matrices too."""
  return jax.tree_util.tree_map_with_path(
    lambda path, p: p.ndim > 1 and not path[-1].key.startswith('bias'), params
  )


_GENERATING = ('generator', 'router_kernels')
_MIXTURE = ('router_biases', 'router_priors', 'mixture_share')


def _has_a_rate(params):
  """True for the matrices that generate weights and for what places trust in the scales."""

  def has_rate(path, p):
    return group(path) in _MIXTURE or (group(path) in _GENERATING and p.ndim > 1)

  return jax.tree_util.tree_map_with_path(has_rate, params)


def _scale_by_rates(config) -> 'optax.GradientTransformation':
  import optax

  def rate(path) -> float:
    return config.mixture_rate if group(path) in _MIXTURE else config.generator_rate

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(lambda path, u: rate(path) * u, updates)
  )


def group(path) -> str:
  """What a parameter belongs to, by its path in {'model': ..., 'text': ...}.

  Returns:
    'backbone', 'text_encoder'; 'experts', 'banks', of single scales; 'generator', text and context
    to heads; of the router 'router_biases' and 'router_priors', the rest is 'router_kernels';
    'mixture_share', of a warm start.
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


def distances(start, params) -> dict[str, jax.Array]:
  """How far each group of parameters is from `start`: 'moved/GROUP' -> () float32.

  The root mean square of the differences of all its numbers; groups as in `group`.
  """
  squares, counts = {}, {}
  leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.subtract, params, start))
  for path, difference in leaves:
    name = f'moved/{group(path)}'
    squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(difference))
    counts[name] = counts.get(name, 0) + difference.size
  return {name: jnp.sqrt(squares[name] / counts[name]) for name in squares}


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
