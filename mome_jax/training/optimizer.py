"""The optimizer and its learning rates. Prediction does not import this: it needs no optax."""

import jax
import optax
from ml_collections import ConfigDict

from mome_jax.training.parameter_groups import group


def learning_rate(config: ConfigDict) -> optax.Schedule:
  """Linear warm-up over `warmup_steps`, then cosine to zero at `steps`."""
  return optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
  )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
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

  A prior at the full rate moves its logit as far as the query does at 0.1. Backbone, experts and
  banks generate nothing and train at 1. The text encoder trains at `text_rate`: faster, it forgets
  what it was taught of all the words that the run's classes are not called by.

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
    optax.masked(_scale_by_rates(config), _has_a_rate),
  )


def _decays(params):
  """True for weights; the biases of a bank are matrices too."""
  return jax.tree_util.tree_map_with_path(
    lambda path, p: p.ndim > 1 and not path[-1].key.startswith('bias'), params
  )


_GENERATING = ('generator', 'router_kernels')
_MIXTURE = ('router_biases', 'router_priors', 'mixture_share')
_WHOLE = (*_MIXTURE, 'text_encoder')


def _has_a_rate(params):
  """True for matrices that generate weights, what places trust in the scales, and the text."""

  def has_rate(path, p):
    return group(path) in _WHOLE or (group(path) in _GENERATING and p.ndim > 1)

  return jax.tree_util.tree_map_with_path(has_rate, params)


def _scale_by_rates(config) -> optax.GradientTransformation:
  def rate(path) -> float:
    if group(path) == 'text_encoder':
      return config.text_rate
    return config.mixture_rate if group(path) in _MIXTURE else config.generator_rate

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(lambda path, u: rate(path) * u, updates)
  )
