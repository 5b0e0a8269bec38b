"""Whether a config goes on with the run in a workdir, or would make another model of it."""

import fnmatch
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import ml_collections
from etils import epath

from input_pipeline.files.buckets import is_in_bucket
from mome_jax import shipped
from mome_jax.checkpoint.config_file import read_config
from mome_jax.checkpoint.ensemble import members
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.checkpoint.files import (
  BEST,
  CHECKPOINTS,
  CONFIG,
  ENSEMBLE,
  PARAMS,
  SAFETENSORS,
  TEXT_VECTORS,
  absolute,
  finished_steps,
  is_checkpoint,
  is_name,
)
from mome_jax.checkpoint.model_folder import folder_of, load_config
from mome_jax.checkpoint.text_encoder import fit_text, text_sizes
from mome_jax.configs import base
from mome_jax.errors import few
from mome_jax.text import prompt_inputs
from mome_jax.text.vectors import TextVectors

# What may change between two starts of one run: where it computes, how fast, what it logs, how it
# is evaluated, and learning rate and warm-up, which every row of the log tells. Whatever is not
# listed, new fields too, decides what is learned.
_IRRELEVANT = (  # to what is learned and scored
  'data.cache_mb',
  'data.loader',  # makes the same batches
  'data.num_parallel',
  'data_dir',  # what is prepared there is compared instead
  'evaluation.batch_size',
  'evaluation.pictures',
  'init.finetunes',  # the learning rate says it
  'mesh.*',
  'model.class_chunk',
  'model.remat',
  'profile',
  'text.vectors',  # as with data_dir
  'train.accumulate',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.log_every',
  'validation.picture',
)
# How the best checkpoint is found, and when to end early: nothing to a run that does neither.
_CHOICE = ('validation.every', 'validation.patches', 'validation.patience', 'validation.smoothing')
MAY_CHANGE = (
  *_IRRELEVANT,
  *_CHOICE,
  'evaluation.*',
  'train.learning_rate',
  'train.steps',
  'train.warmup_steps',
)
_STARTS = ('init.checkpoint', 'init.text')  # a place, however it is written
# What a trained model is; the rest of a config tells how it was trained or is to be scored.
_MODEL = ('classes', 'data.spacing', 'data.windows', 'model.*', 'text.*')
_TAUGHT_BY = ('model.router_apart',)  # of the training, whatever the model is
_DERIVED = ('text.d_model',)  # training completes it


def goes_on(workdir: epath.PathLike) -> bool:
  """Whether a workdir has steps that a run goes on from, and says what they learned."""
  folder = absolute(workdir)
  return bool(finished_steps(folder / CHECKPOINTS)) and (folder / CONFIG).is_file()


def check_same_run(
  workdir: epath.PathLike, config: ml_collections.ConfigDict, vectors: TextVectors | None = None
) -> list[str]:
  """Refuses to go on in `workdir` with a config that would learn something else.

  Args:
    workdir: of the run; nothing is compared where it has no checkpoint yet.
    config: the whole config, complete with what the data and text say.
    vectors: of a frozen model.

  Returns:
    What differs and may: 'train.steps: 100 -> 200'.

  Raises:
    CheckpointError: if anything else differs, or `workdir` is a model folder, an ensemble's or a
      checkpoint.
  """
  folder = absolute(workdir)
  if is_checkpoint(folder):
    raise CheckpointError(
      f'{folder} is a checkpoint, not the workdir of a run; go on in '
      f'--workdir={folder.parent.parent}'
    )
  if (folder / ENSEMBLE).is_file():
    raise CheckpointError(
      f'{folder} holds an ensemble, see its {ENSEMBLE}: a run there could not be read; choose '
      'another --workdir'
    )
  if (folder / PARAMS).is_dir() or (folder / SAFETENSORS).is_file():
    raise CheckpointError(
      f'{folder} is a model folder, not the workdir of a run; start from it in another --workdir '
      f'with --config.init.checkpoint={workdir}'
    )
  file = folder / CONFIG
  if not finished_steps(folder / CHECKPOINTS):
    return []
  if not file.is_file():
    raise CheckpointError(
      f'{folder} has checkpoints but no {CONFIG}, so that nothing says what they learned; copy it '
      'there again, or choose another --workdir'
    )
  changes = config_changes(file, config)
  refused = [text for name, text in changes.items() if not _matches(name, MAY_CHANGE)]
  learned = folder / TEXT_VECTORS
  if vectors is not None and learned.is_file():
    before = TextVectors.load(learned)
    if not prompt_inputs.teach_the_same(config, before, vectors):
      refused.append(f'text.vectors: {config.text.vectors or "these"} are not those of the run')
  if refused:
    raise CheckpointError(
      f'{folder} holds a run that learns something else: {few(refused, 8)}. Go on with the '
      'values of its config.json, or choose another --workdir (with --config.init.checkpoint='
      f'{workdir} it starts from these weights)'
    )
  return list(changes.values())


def for_evaluation(
  workdir: epath.PathLike, config: ml_collections.ConfigDict | None
) -> ml_collections.ConfigDict:
  """The config of a trained model, with the data and the way to score them of another config.

  Args:
    workdir: a training workdir, model folder or one of its `checkpoints/STEP`; or a folder of an
      ensemble, whose first member counts.
    config: whose `data_dir`, `data.sources`, `data.fold`, `data.folds` and `evaluation` are
      taken; None: the model's.

  Raises:
    CheckpointError: if there is no model, or `config` describes another one.
  """
  model, *others = members(workdir)
  trained = load_config(model)
  if others:  # each holds out a fold of its own
    trained.data.fold = -1
  if config is None:
    return trained
  config = config.copy_and_resolve_references()
  fit_text(config.text, text_sizes(trained.text))
  changes = config_changes(folder_of(model) / CONFIG, config)
  other = [
    text
    for name, text in changes.items()
    if _matches(name, _MODEL) and not _matches(name, (*MAY_CHANGE, *_TAUGHT_BY, *_DERIVED))
  ]
  if other:
    raise CheckpointError(
      f'{workdir}: --config describes another model than its own: {few(other, 8)}. Leave '
      '--config out; values such as --config.evaluation.split=all can be given without it'
    )
  with trained.unlocked():
    trained.data_dir, trained.data.sources = config.data_dir, config.data.sources
    trained.data.fold, trained.data.folds = config.data.fold, config.data.folds
    trained.evaluation = config.evaluation
  return trained


def other_values(workdir: epath.PathLike, config: ml_collections.ConfigDict) -> dict[str, str]:
  """'name: old -> new' of each value that makes a config another experiment than a workdir's.

  Args:
    workdir: of a run with checkpoints.
    config: as it is given, not completed by training.

  Returns:
    By the name of the value; those of `evaluation` too, which score the same model otherwise.
  """
  config = config.copy_and_resolve_references()
  before = load_config(workdir)
  fit_text(config.text, text_sizes(before.text))
  config.new_classes = before.new_classes  # those that the sources bring along are among them
  chooses = any(map(_chooses, (before, config)))
  passed_over = (*_IRRELEVANT, *_DERIVED, *(() if chooses else _CHOICE))
  changes = config_changes(folder_of(workdir) / CONFIG, config)
  return {name: text for name, text in changes.items() if not _matches(name, passed_over)}


def _chooses(config: ml_collections.ConfigDict) -> bool:
  return config.evaluation.checkpoint == BEST or config.validation.patience > 0


def check_same_data(
  workdir: epath.PathLike, position: Mapping[str, Any], digests: Mapping[str, str]
) -> None:
  """Refuses to go on with other scans or labels than a run has seen.

  Args:
    workdir: of the run.
    position: of its checkpoint; nothing is compared where its 'data' says nothing.
    digests: `bricks.BrickStore.digest` of each source.

  Raises:
    CheckpointError: if the data are others.
  """
  before = position.get('data', digests)
  changed = [name for name, digest in digests.items() if before.get(name) != digest]
  if changed:
    raise CheckpointError(
      f'{absolute(workdir)} was trained on other scans, labels or splits of '
      f'{", ".join(changed)} than are prepared in config.data_dir now; prepare those again, or '
      f'choose another --workdir (with --config.init.checkpoint={workdir} it starts from these '
      'weights)'
    )


def config_changes(file: epath.Path, config: ml_collections.ConfigDict) -> dict[str, str]:
  """'name: old -> new' of each field whose value is not that in a `config.json`.

  Fields that the file lacks had the values of `configs/base.py`.
  """
  old = _flat(read_config(file))
  new = _flat(json.loads(config.to_json_best_effort()))
  defaults = _flat(json.loads(base.get_config().to_json_best_effort()))
  # A run from before this rate existed trained what it is for at the generator's.
  if 'train.generator_rate' in old:
    old.setdefault('train.mixture_rate', old['train.generator_rate'])
  # One from before there were negatives went without them, and its text trained at full rates;
  # frozen text does neither. Where a text encoder started does not matter any more by now. And one
  # from before steps could be left out keeps no count of them.
  before: dict[str, Any] = {'init.text': new.get('init.text')}
  before |= {'train.skip_nonfinite': 0, 'train.text_layer_rate': 1.0}
  if old.get('text.mode') != 'frozen':
    before |= {'train.negatives': 0, 'train.text_rate': 1.0}
  old = {name: value for name, value in before.items() if name in new} | old
  old = {name: value for name, value in defaults.items() if name in new} | old
  if new.get('text.mode') == 'frozen':  # which reads neither
    old |= {name: new[name] for name in ('init.text', 'train.text_rate') if name in new}
  if old.get('data.fold') == new.get('data.fold') == -1 and 'data.folds' in new:
    new['data.folds'] = old['data.folds']  # how many there are is nothing to a run of none
  for name in _STARTS:
    if name in old and name in new and _may_be_the_same(old[name], new[name]):
      new[name] = old[name]
  return differences(old, new)


def _may_be_the_same(before: Any, now: Any) -> bool:
  """Whether two starts may be one place: from which folder a relative one was seen is not noted."""
  if not (isinstance(before, str) and isinstance(now, str)):
    return before == now
  if shipped.is_model(before) and shipped.is_model(now):
    return True
  if any(not path or is_name(path) for path in (before, now)):
    return before == now
  place = absolute(now)
  if before.startswith(('/', '~')) or is_in_bucket(before):
    return absolute(before) == place
  seen = [part for part in os.path.normpath(before).split('/') if part not in ('.', '..')]
  same_end = bool(seen) and list(place.parts[-len(seen) :]) == seen
  return same_end or absolute(before) == place  # a link has another name


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
  """'name: old -> new' by name, wherever two dicts differ."""
  names = sorted(old.keys() | new.keys())
  pairs = ((name, old.get(name, 'absent'), new.get(name, 'absent')) for name in names)
  return {name: f'{name}: {a} -> {b}' for name, a, b in pairs if a != b}


def _matches(name: str, patterns: Iterable[str]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _flat(tree: Mapping) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(tree, sep='.')
