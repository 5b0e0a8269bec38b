"""What a run learns, and where it begins: anew, from another model, or from its last checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from input_pipeline import bricks
from input_pipeline.anatomy import Template
from input_pipeline.bricks.command import suited_to
from input_pipeline.patients import folds
from mome_jax import checkpoint
from mome_jax.errors import ConfigError
from mome_jax.models import build_model
from mome_jax.text import prompt_inputs
from mome_jax.text.tokenizer import DEFAULT_MODEL
from mome_jax.text.vectors import TextVectors
from mome_jax.training import optimizer, text_start, unlearnable, validation_scans
from mome_jax.training.monitor import Choice
from mome_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Task:
  """What a run learns, and from what.

  Attributes:
    config: with the classes that the sources bring along, and the width of the text.
    template: of all classes.
    stores: the prepared sources, without the scans that are set aside.
    digests: what tells the data of each source from others, by its name.
    text: the text branch.
    text_start: where the text encoder of a new run begins; None where the run goes on, or its text
      is frozen.
    tokenizer: SentencePiece file of the text encoder.
    changes: what differs from the config of the run's earlier steps.
    held_out: scans that the run is measured on and not trained on, or None.
  """

  config: ml_collections.ConfigDict
  template: Template
  stores: list[bricks.BrickStore]
  digests: dict[str, str]
  text: prompt_inputs.TrainingText
  text_start: text_start.TextStart | None
  tokenizer: epath.Path
  changes: list[str]
  held_out: validation_scans.HeldOutScans | None


def read_task(config: ml_collections.ConfigDict, workdir: epath.Path) -> Task:
  """Reads what a config names, and completes a copy of it.

  Raises:
    TextVectorError: if the text is frozen and its vectors are missing.
    CheckpointError: if `workdir` holds a run that learns something else.
    ConfigError: if the text encoder to start from is not the one that the config describes, or no
      training scan shows any of the classes.
  """
  config = config.copy_and_resolve_references()
  template = bricks.read_template(
    config.data_dir,
    config.data.sources,
    config.new_classes,
    options=suited_to(config.data.spacing, config.data.patch),
  )
  config.new_classes = template.additions()  # a checkpoint knows its classes without the data
  start, tokenizer = _find_text(config, workdir)
  text = prompt_inputs.for_training(config, template, tokenizer)
  config.text.d_model = text.width
  changes = checkpoint.check_same_run(workdir, config, text.vectors)
  text = _keep_prompts(text, config, workdir)
  fold = folds.of_run(config)
  stores = [
    bricks.open_bricks(config.data_dir, name, template, fold) for name in config.data.sources
  ]
  digests = {store.name: store.digest() for store in stores}
  training, held_out = validation_scans.split(config, stores, template, workdir, fold)
  unlearnable.check(training, config.classes)
  return Task(config, template, training, digests, text, start, tokenizer, changes, held_out)


def _find_text(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> tuple[text_start.TextStart | None, epath.Path]:
  """Start and vocabulary of the text encoder; gives `config.text` its sizes, in place.

  Of a run that goes on, also the vectors that it learned with, where the file given is no more.
  A text encoder's weights are useless with any other vocabulary: that of the run's earlier steps,
  or of what it starts from.
  """
  if checkpoint.goes_on(workdir):
    before = checkpoint.load_config(workdir)
    checkpoint.fit_text(config.text, checkpoint.text_sizes(before.text))
    learned = checkpoint.text_file(workdir, config)
    if config.text.vectors and not epath.Path(config.text.vectors).exists() and learned.is_file():
      config.text.vectors = str(learned)
    return None, checkpoint.text_file(workdir, before)
  if prompt_inputs.is_frozen(config.text):
    return None, epath.Path(DEFAULT_MODEL)
  start = text_start.find(config)
  text_start.fit(config, start)
  return start, start.tokenizer


def _keep_prompts(
  text: prompt_inputs.TrainingText, config: ml_collections.ConfigDict, workdir: epath.Path
) -> prompt_inputs.TrainingText:
  """Frozen text with the prompts, too, that were added to a workdir to evaluate with them."""
  if text.vectors is None or not checkpoint.goes_on(workdir):
    return text
  file = checkpoint.text_file(workdir, config)
  if not file.is_file():
    return text
  return dataclasses.replace(text, vectors=text.vectors.with_others(TextVectors.load(file)))


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run begins or goes on.

  Attributes:
    state: before its next step.
    step: steps that are done.
    params: that the run began with, in its first step; None where that is not known any more.
    choice: by the validations of the earlier steps.
  """

  state: TrainState
  step: int
  params: Any
  choice: Choice = Choice()


def find_start(
  task: Task,
  workdir: epath.Path,
  checkpointer: checkpoint.Checkpointer,
  fresh: TrainState,
  abstract: TrainState,
) -> Start:
  """The newest checkpoint of a run, or the beginning of a new one, which is saved.

  Args:
    task: of the run.
    workdir: of the run.
    checkpointer: of the workdir.
    fresh: state of random parameters.
    abstract: its shapes and shardings.

  Raises:
    CheckpointError: if a checkpoint cannot be read or is one of other data.
    ConfigError: if a parameter is random and `train.freeze` keeps it so.
  """
  restored = checkpointer.restore(abstract, task.config)
  if restored is not None:
    state, position = restored
    checkpoint.check_same_data(workdir, position, task.digests)
    choice = Choice(**position.get('validation', {}))
    return Start(state, position['step'], checkpointer.load_start(abstract), choice)
  params = _initial(task, fresh.params)
  fresh = fresh.replace(params=params, ema=jax.tree.map(jnp.copy, params))
  checkpointer.save_start(fresh.params)
  return Start(fresh, 0, jax.tree.map(jnp.copy, fresh.params))


def _initial(task: Task, fresh: Any) -> Any:
  """The parameters of a run's first step: those of what it starts from, else the fresh ones."""
  params, origin, text = dict(fresh), task.config.init.checkpoint, task.text_start
  random = ['model']
  if text and text.load:
    placed = lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding)
    params['text'] = jax.tree.map(placed, text.load(), params['text'])
    if text.name != origin:
      print(f'text encoder of {text.name}')
  if origin:
    same = text is None or text.name == origin
    fresh = params if same else {'model': params['model']}
    other = _of_other_scales(task.config, checkpoint.load_config(origin))
    taken, random = checkpoint.initialise(fresh, origin, other)
    params |= taken
  random += ['text'] if text and not text.load else []
  if origin:
    print(f'starting from {origin}; random: {", ".join(random) or "nothing"}')
    if 'model' not in random and (
      others := _otherwise(task.config, checkpoint.load_config(origin))
    ):
      print(f'CAUTION: {origin} was trained with {"; ".join(others)}')
  _check_kept(task.config.train.freeze, params, random)
  if text and not text.load and not task.config.train.text_rate:
    print('CAUTION: the text encoder is random and stays so; set config.train.text_rate=1')
  return params


def _check_kept(patterns: Sequence[str], params: Any, random: Sequence[str]) -> None:
  """ConfigError where `train.freeze` keeps a parameter of one of the subtrees `random`."""
  subtrees = tuple(f'{name}/' for name in random)
  for name in flax.traverse_util.flatten_dict(params, sep='/'):
    if f'{name}/'.startswith(subtrees) and optimizer.is_kept(name, patterns):
      raise ConfigError(
        f'train.freeze: {name} is random and would stay so; set config.init.checkpoint to a model '
        'that has it, or leave it out'
      )


def _of_other_scales(config: ml_collections.ConfigDict, start: ml_collections.ConfigDict) -> str:
  """Pattern of the router's parameters that a start learned for another scale.

  They are named by their place among the scales that take part, not by the scale.
  """
  ours, theirs = (build_model(one.model).active_scales for one in (config, start))
  pairs = enumerate(zip(ours, theirs, strict=False))
  moved = [str(place) for place, (one, other) in pairs if one != other]
  return rf'model/router/\w+_({"|".join(moved)})(/.*)?' if moved else ''


def _otherwise(config: ml_collections.ConfigDict, start: ml_collections.ConfigDict) -> list[str]:
  """What makes equal parameters mean something else in a run and in its start."""
  values = [
    ('model.head_activation', lambda one: one.model.head_activation),
    ('data.windows', lambda one: [list(window) for window in one.data.windows]),
    ('data.spacing', lambda one: list(one.data.spacing)),
  ]
  return [
    f'{name}={of(start)}, this run has {of(config)}'
    for name, of in values
    if of(start) != of(config)
  ]
