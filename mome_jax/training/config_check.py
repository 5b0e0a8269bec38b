"""Values of a config that cannot be: found before anything is computed, all of them at once."""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.batches import augment, dataset
from mome_jax import checkpoint
from mome_jax.configs import base
from mome_jax.errors import ConfigError, UserError, suggest
from mome_jax.evaluate import held_out
from mome_jax.inference import postprocess
from mome_jax.models import build_model
from mome_jax.text import prompts
from mome_jax.text.prompt_inputs import MODES
from mome_jax.training import config_flag, text_start
from mome_jax.training.loss_terms import TERMS
from mome_jax.training.optimizer import OPTIMIZERS, SCHEDULES

_MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class _Rule:
  holds: Callable[[Any], bool]
  expected: str


def _whole(low: int) -> _Rule:
  return _Rule(
    lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low,
    f'a whole number from {low} on',
  )


def _number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False):
  """A number from low to high; `above` leaves low out, `below` high."""

  def holds(v):
    if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v):
      return False
    return (low < v if above else low <= v) and (v < high if below else v <= high)

  lower = f'above {low:g}' if above else f'from {low:g}'
  upper = '' if high == math.inf else f' to below {high:g}' if below else f' to {high:g}'
  return _Rule(holds, f'a number {lower}{upper or ("" if above else " on")}')


def _three(each: _Rule) -> _Rule:
  return _Rule(
    lambda v: isinstance(v, tuple | list) and len(v) == 3 and all(map(each.holds, v)),
    f'three of them, each {each.expected}',
  )


def _names(v) -> bool:
  return (
    isinstance(v, tuple | list)
    and len(v) > 0
    and all(isinstance(name, str) and name for name in v)
    and len(set(v)) == len(v)
  )


def _sources(v) -> bool:
  return _names(v) and not any(',' in name for name in v)  # what is written without quotes is one


def _windows(v) -> bool:
  pairs = isinstance(v, tuple | list) and len(v) > 0
  return pairs and all(len(pair) == 2 and pair[0] < pair[1] for pair in v)


def _pattern(v) -> bool:
  try:
    return isinstance(v, str) and v != '' and re.compile(v) is not None
  except re.error:
    return False


def _pairs(first: Callable[[Any], bool], second: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """Whether a value is a sequence of pairs."""
  pair = lambda v: isinstance(v, tuple | list) and len(v) == 2 and first(v[0]) and second(v[1])
  return lambda v: isinstance(v, tuple | list) and all(map(pair, v))


def _patterns(v) -> bool:
  return isinstance(v, tuple | list) and all(map(_pattern, v))


_COUNT, _SHARE = _whole(1), _number(0, 1)
_POSITIVE, _WEIGHT = _number(0, above=True), _number(0)
_RULES = {
  'seed': _Rule(lambda v: isinstance(v, int) and 0 <= v <= _MAX_SEED, f'0 to {_MAX_SEED}'),
  'profile': _whole(0),
  'data_dir': _Rule(bool, 'the folder that input_pipeline.prepare wrote'),
  'classes': _Rule(_names, "names of classes, each once, as ('liver', 'spleen')"),
  'data.sources': _Rule(
    _sources, "names of prepared sources, each once, as ('phantom',) or ('openkbp', 'thorax')"
  ),
  'data.spacing': _three(_POSITIVE),
  'data.windows': _Rule(_windows, 'pairs (low, high) of HU, low below high'),
  'data.patch': _three(_COUNT),
  'data.foreground': _SHARE,
  'data.weights': _Rule(
    _pairs(lambda v: isinstance(v, str), _POSITIVE.holds),
    "pairs of a dataset and a number above 0, as (('phantom_liver', 2.0),)",
  ),
  'data.augment_of': _Rule(
    _pairs(lambda v: isinstance(v, str), lambda v: isinstance(v, Mapping)),
    "pairs of a dataset and fields of data.augment, as (('phantom_liver', {'p_warp': 0.25}),)",
  ),
  'data.cache_mb': _WEIGHT,
  'data.num_parallel': _whole(0),
  'text.vocab_size': _COUNT,
  'text.max_length': _whole(2),
  'text.d_model': _COUNT,
  'text.d_kv': _COUNT,
  'text.d_ff': _COUNT,
  'text.num_layers': _COUNT,
  'text.num_heads': _COUNT,
  'model.width': _COUNT,
  'model.router_width': _COUNT,
  'model.class_chunk': _COUNT,
  'model.bank.num_experts': _COUNT,
  'model.bank.expansion': _COUNT,
  'train.steps': _COUNT,
  'train.batch_size': _COUNT,
  'train.accumulate': _COUNT,
  'train.skip_nonfinite': _whole(0),
  'train.freeze': _Rule(_patterns, "regular expressions of paths, as ('model/backbone',)"),
  'train.rates': _Rule(
    _pairs(_pattern, _WEIGHT.holds),
    "pairs of a regular expression of paths and a factor, as (('model/backbone', 0.1),)",
  ),
  'train.learning_rate': _WEIGHT,
  'train.generator_rate': _WEIGHT,
  'train.mixture_rate': _WEIGHT,
  'train.text_rate': _WEIGHT,
  'train.text_layer_rate': _WEIGHT,
  'train.warmup_steps': _whole(0),
  'train.weight_decay': _WEIGHT,
  'train.clip_norm': _POSITIVE,
  'train.ema_decay': _SHARE,
  'train.negatives': _whole(0),
  **{f'train.{term.weight}': _WEIGHT for term in TERMS.values()},
  'train.balance_loss': _WEIGHT,
  'train.z_loss': _WEIGHT,
  'train.log_every': _COUNT,
  'train.checkpoint_every': _COUNT,
  'train.keep_checkpoints': _COUNT,
  'validation.every': _whole(0),
  'validation.cases': _whole(0),
  'validation.patches': _COUNT,
  'validation.smoothing': _number(0, 1, below=True),
  'validation.patience': _whole(0),
  'evaluation.window': _three(_COUNT),
  'evaluation.overlap': _number(0, 1, below=True),
  'evaluation.batch_size': _whole(0),
  'evaluation.pictures': _whole(0),
}
_CHOICES = {
  'text.mode': MODES,
  'data.balance': ('sources', 'classes'),
  'data.loader': dataset.LOADERS,
  'train.optimizer': tuple(OPTIMIZERS),
  'train.schedule': tuple(SCHEDULES),
  'evaluation.checkpoint': (checkpoint.LAST, checkpoint.BEST),
  'evaluation.split': held_out.CHOICES,
  'evaluation.prompts': tuple(prompts.BY_KIND),
}


def check(config: ConfigDict, *, data: bool = True, model: str = '') -> None:
  """Refuses a config that no run can use.

  Args:
    config: the whole config; see `configs/base.py`. One that starts from a model may have values
      that only the model's version of this program knew.
    data: whether prepared sources must be named; compilation reads none.
    model: that is evaluated with it, or workdir of the run that goes on, '' for none: what that
      started from may be gone.

  Raises:
    ConfigError: that names every wrong value, what it is and what was expected.
  """
  faults = [*_unknown(config, model or config.init.checkpoint)]
  faults += _wrong(config, () if data or config.data.sources else ('data.sources',))
  if not faults:
    faults = [*_contradictions(config, starts=not model)]
  if faults:
    raise ConfigError('; '.join(f'config.{fault}' for fault in faults))


def _unknown(config: ConfigDict, model: str) -> Iterator[str]:
  known = list(config_flag.keys(base.get_config()))
  if model:
    try:
      known += config_flag.keys(checkpoint.load_config(checkpoint.members(model)[0]))
    except UserError:
      return  # told where the model is read
  for name in config_flag.keys(config):
    # Each network has options of its own; models.backbones knows them.
    if name not in known and not name.startswith('model.backbone.'):
      yield f'{name}: no such value; {config_flag.nearest(name, known)}'


def _wrong(config: ConfigDict, leave_out: Collection[str]) -> Iterator[str]:
  values = {name: _get(config, name) for name in (*_RULES, *_CHOICES)}
  for name, rule in _RULES.items():
    if name not in leave_out and not _holds(rule, values[name]):
      yield f'{name} is {values[name]!r}; expected {rule.expected}'
  for name, choices in _CHOICES.items():
    if values[name] not in choices:
      yield f'{name} is {values[name]!r}; {suggest(values[name], choices)}'


def _get(config: ConfigDict, name: str) -> Any:
  for part in name.split('.'):
    config = config[part]
  return config


def _holds(rule: _Rule, value: Any) -> bool:
  try:
    return rule.holds(value)
  except TypeError:  # such as a comparison of a text with a number
    return False


def _check_experimental(config: ConfigDict) -> None:
  names = tuple(config.experimental)
  if unknown := [name for name in names if name not in config.classes]:
    raise ConfigError(f'{", ".join(unknown)}: not in config.classes; leave it out there')
  if config.classes and set(names) == set(config.classes):
    raise ConfigError('names every class, so that none is predicted by default; leave some out')


def _check_augmentation(config: ConfigDict) -> None:
  names = [name for name, _ in config.data.augment_of]
  if twice := {name for name in names if names.count(name) > 1}:
    raise ConfigError(f'{", ".join(sorted(twice))}: named twice; keep one')
  for name, fields in config.data.augment_of:
    try:
      augment.complete_for(config.data.augment, fields)
    except UserError as error:
      raise ConfigError(f'{name}: {error}') from error


def _check_start(config: ConfigDict) -> None:
  """ConfigError where the parameters that a run starts from would compute something else."""
  if not config.init.checkpoint:
    return
  start = checkpoint.load_config(config.init.checkpoint)
  if {config.model.backbone.name, start.model.backbone.name} == {'swin_unetr'}:
    ours, theirs = (one.model.backbone.get('merging', 'monai') for one in (config, start))
    if ours != theirs:
      raise ConfigError(
        f'{config.init.checkpoint} joins the neighbours of its patch merging in the order '
        f'{theirs!r}, model.backbone.merging is {ours!r}; set it to {theirs!r}'
      )


def _unread_text(config: ConfigDict) -> Iterator[str]:
  """What is asked of a text branch that the run does not have."""
  if config.text.mode == 'joint' and config.text.vectors:
    yield (
      f'text.vectors is {config.text.vectors!r}, and joint text reads none; set '
      'config.text.mode=frozen, or leave it out'
    )
  if config.text.mode == 'frozen':
    usual = base.get_config()
    for name in ('init.text', 'train.text_rate'):
      if _get(config, name) != _get(usual, name):
        yield (
          f'{name} is {_get(config, name)!r}, and frozen text has no encoder to train; leave it at '
          f'{_get(usual, name)!r}, or set config.text.mode=joint'
        )


def _contradictions(config: ConfigDict, *, starts: bool) -> Iterator[str]:
  """What cannot be of values that can."""
  parts = {
    'data.augment': lambda: augment.complete(config.data.augment),
    'data.augment_of': lambda: _check_augmentation(config),
    'evaluation.postprocess': lambda: postprocess.check(config.evaluation.postprocess),
    'new_classes': lambda: TEMPLATE.extend(config.new_classes),
    'experimental': lambda: _check_experimental(config),
  }
  if starts:
    parts['init.checkpoint'] = lambda: _check_start(config)
    parts['init.text'] = lambda: text_start.complete(config.copy_and_resolve_references())
  for name, check_part in parts.items():
    try:
      check_part()
    except UserError as error:
      yield str(error) if str(error).startswith((name, 'text.')) else f'{name}: {error}'
  yield from _unread_text(config)
  if config.model.dtype == 'float16':
    yield 'model.dtype is float16, in which most slopes are zero; train in bfloat16 or float32'
  try:
    stride = build_model(config.model).backbone.stride
  except UserError as error:
    yield str(error)
    return
  for name in ('data.patch', 'evaluation.window'):
    sides = tuple(_get(config, name))
    if any(side % stride for side in sides):
      yield f'{name} is {sides}; expected multiples of {stride}, the coarsest scale of the network'
