"""What a run learns, and where it begins: anew, from another model, or from its last checkpoint."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from input_pipeline import bricks
from input_pipeline.anatomy import Template
from mome_jax import checkpoint
from mome_jax.text import prompt_inputs
from mome_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Task:
  """What a run learns, and from what.

  Attributes:
    config: with the classes that the sources bring along, and the width of the text.
    template: of all classes.
    stores: the prepared sources.
    digests: what tells the data of each source from others, by its name.
    text: the text branch.
    tokenizer: SentencePiece file of the text encoder.
    changes: what differs from the config of the run's earlier steps.
  """

  config: ml_collections.ConfigDict
  template: Template
  stores: list[bricks.BrickStore]
  digests: dict[str, str]
  text: prompt_inputs.TrainingText
  tokenizer: epath.Path
  changes: list[str]


def read_task(config: ml_collections.ConfigDict, workdir: epath.Path) -> Task:
  """Reads what a config names, and completes a copy of it.

  Raises:
    TextVectorError: if the text is frozen and its vectors are missing.
    CheckpointError: if `workdir` holds a run that learns something else.
  """
  config = config.copy_and_resolve_references()
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  config.new_classes = template.additions()  # a checkpoint knows its classes without the data
  tokenizer = checkpoint.find_tokenizer(workdir, config)
  text = prompt_inputs.for_training(config, template, tokenizer)
  config.text.d_model = text.width
  changes = checkpoint.check_same_run(workdir, config, text.vectors)
  stores = [bricks.open_bricks(config.data_dir, name, template) for name in config.data.sources]
  digests = {store.name: store.digest() for store in stores}
  return Task(config, template, stores, digests, text, tokenizer, changes)


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run begins or goes on.

  Attributes:
    state: before its next step.
    step: steps that are done.
    params: that the run began with, in its first step; None where that is not known any more.
  """

  state: TrainState
  step: int
  params: Any


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
  """
  restored = checkpointer.restore(abstract, task.config)
  if restored is not None:
    state, position = restored
    checkpoint.check_same_data(workdir, position, task.digests)
    return Start(state, position['step'], checkpointer.load_start(abstract))
  origin = task.config.init.checkpoint
  if origin:
    params, random = checkpoint.initialise(fresh.params, origin)
    fresh = fresh.replace(params=params, ema=jax.tree.map(jnp.copy, params))
    print(f'starting from {origin}; random: {", ".join(random) or "nothing"}')
  checkpointer.save_start(fresh.params)
  return Start(fresh, 0, jax.tree.map(jnp.copy, fresh.params))
