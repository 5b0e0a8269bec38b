"""The optimizer and its learning rates. Prediction does not import this: it needs no optax."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from mome_jax.errors import ConfigError, suggest
from mome_jax.training.parameter_groups import group


def _sgd(rate: optax.ScalarOrSchedule, *, weight_decay: float, mask: Any) -> Any:
  """nnU-Net's (Isensee et al., Nature Methods 2021): Nesterov momentum 0.99."""
  decay = optax.add_decayed_weights(weight_decay, mask)
  return optax.chain(decay, optax.sgd(rate, momentum=0.99, nesterov=True))


# Name in config.train.optimizer -> (schedule, weight_decay=, mask=) -> transformation.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adamw': optax.adamw,
  'nadamw': optax.nadamw,
  'lion': optax.lion,
  'lamb': optax.lamb,
  'sgd': _sgd,
}
# Name in config.train.schedule -> (learning rate, steps) -> what follows the warm-up.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
  'cosine': optax.cosine_decay_schedule,
  'linear': lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
  'polynomial': lambda rate, steps: optax.polynomial_schedule(rate, 0.0, 0.9, steps),  # nnU-Net's
  'constant': lambda rate, steps: optax.constant_schedule(rate),
}


def learning_rate(config: ConfigDict) -> optax.Schedule:
  """Linear warm-up over `warmup_steps`, then `schedule` to its end at `steps`."""
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  left = max(config.steps - config.warmup_steps, 1)
  after = SCHEDULES[config.schedule](config.learning_rate, left)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The optimizer with clipping by global norm; biases, norms and scalars do not decay.

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

  Where a text encoder trains, the kernel of `text` reads its dense vectors, so that a step for one
  class moves all others: `text_layer_rate` slows it further. With one-hot vectors, of which each
  class has a row of the kernel for itself, it moves a fiftieth as far anyway. Frozen vectors of
  unit length and much in common need the full rate.

  A prior at the full rate moves its logit as far as the query does at 0.1. Backbone, experts and
  banks generate nothing and train at 1. The text encoder trains at `text_rate`, by default not at
  all: it forgets what it was taught of all the words that the run's classes are not called by.

  `rates` multiplies these, path by path: the factor of the first pattern that fits. What `freeze`
  names has neither a gradient in the global norm nor moments. Patterns are regular expressions of a
  whole path such as 'model/backbone/encoder_0/conv_0/kernel', or of a folder of it.

  Args:
    config: `config.train`.

  Returns:
    A transformation. With `skip_nonfinite` it is an `optax.apply_if_finite`.

  Raises:
    ConfigError: when it meets parameters that a pattern of `rates` or `freeze` does not fit.
  """
  rate = learning_rate(config)
  transformation = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    OPTIMIZERS[config.optimizer](rate, weight_decay=config.weight_decay, mask=_decays),
    optax.masked(_scale_by_rates(config), _has_a_rate),
  )
  if config.rates:
    transformation = optax.chain(transformation, _scale_by_paths(config.rates))
  if config.freeze:
    parts = {'trained': transformation, 'frozen': optax.set_to_zero()}
    transformation = optax.partition(parts, lambda params: _parts(params, config))
  if config.rates:
    transformation = _checked(transformation, [pattern for pattern, _ in config.rates])
  if config.skip_nonfinite:
    transformation = optax.apply_if_finite(transformation, config.skip_nonfinite)
  return transformation


def _decays(params):
  """True for weights; biases of a bank and tables of relative positions are matrices too."""

  def decays(path, p):
    keys = [step.key for step in path]
    is_bias = keys[-1].startswith('bias') or keys[-1] == 'position_bias' or 'relpos' in keys
    return p.ndim > 1 and not is_bias

  return jax.tree_util.tree_map_with_path(decays, params)


_GENERATING = ('generator', 'router_kernels')
_MIXTURE = ('router_biases', 'router_priors', 'mixture_share')
_WHOLE = (*_MIXTURE, 'text_encoder')


def _has_a_rate(params):
  """True for matrices that generate weights, what places trust in the scales, and the text."""

  def has_rate(path, p):
    return group(path) in _WHOLE or (group(path) in _GENERATING and p.ndim > 1)

  return jax.tree_util.tree_map_with_path(has_rate, params)


def _scale_by_rates(config) -> optax.GradientTransformation:
  def rate(path, encoder_trains: bool) -> float:
    if group(path) == 'text_encoder':
      return config.text_rate
    if encoder_trains and _path(path) == 'model/text/kernel':
      return config.generator_rate * config.text_layer_rate
    return config.mixture_rate if group(path) in _MIXTURE else config.generator_rate

  def scale(updates, _):
    trains = 'text' in updates
    return jax.tree_util.tree_map_with_path(lambda path, u: rate(path, trains) * u, updates)

  return optax.stateless(scale)


def _scale_by_paths(rates: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
  factor = lambda path: next((f for pattern, f in rates if _fits(pattern, path)), 1.0)
  scale = lambda path, u: u * factor(_path(path))
  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _checked(
  transformation: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
  """The same; patterns of `rates` are looked for among all parameters, frozen ones too."""

  def init(params):
    _check_patterns('rates', patterns, params)
    return transformation.init(params)

  return optax.GradientTransformation(init, transformation.update)


def is_kept(path: str, patterns: Iterable[str]) -> bool:
  """Whether `train.freeze` keeps the parameter 'model/router/bias_1' as it begins."""
  return any(_fits(pattern, path) for pattern in patterns)


def without_slope(params: Any, patterns: Iterable[str]) -> Any:
  """The parameters, of which `train.freeze` keeps some: nothing is differentiated for these."""
  patterns = tuple(patterns)
  kept = lambda path, p: jax.lax.stop_gradient(p) if is_kept(_path(path), patterns) else p
  return jax.tree_util.tree_map_with_path(kept, params) if patterns else params


def _parts(params: Any, config: ConfigDict) -> Any:
  """'frozen' or 'trained' of each parameter; ConfigError where none of them would move."""
  _check_patterns('freeze', config.freeze, params)
  label = lambda path, _: 'frozen' if is_kept(_path(path), config.freeze) else 'trained'
  labels = jax.tree_util.tree_map_with_path(label, params)
  moving = labels if config.text_rate else {'model': labels.get('model', {})}
  if 'trained' not in jax.tree.leaves(moving):
    raise ConfigError(
      'train.freeze: keeps every parameter that the run would train; leave some out, or take an '
      "experiment that has others (one with model.experts='finest' has no router)"
    )
  return labels


def _path(keys: Sequence[Any]) -> str:
  return '/'.join(key.key for key in keys)


def _fits(pattern: str, path: str) -> bool:
  return re.fullmatch(f'(?:{pattern})(?:/.*)?', path) is not None


def _check_patterns(field: str, patterns: Iterable[str], params: Any) -> None:
  paths = [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in patterns:
    if not any(_fits(pattern, path) for path in paths):
      folders = {'/'.join(path.split('/')[:2]) for path in paths} | {'model', 'text'}
      raise ConfigError(
        f'train.{field}: no parameter is called {pattern!r}; {suggest(pattern, sorted(folders))}'
      )
