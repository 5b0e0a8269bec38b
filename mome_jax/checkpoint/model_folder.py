"""Model folders: what prediction and evaluation need of a model, and what a run starts from."""

import dataclasses
import logging
import re
from collections.abc import Iterable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from input_pipeline.files import text_files
from mome_jax.checkpoint import checksums, hf_folder
from mome_jax.checkpoint.config_file import check_fields, read_config
from mome_jax.checkpoint.errors import CheckpointError, brief
from mome_jax.checkpoint.files import (
  CHECKPOINTS,
  CONFIG,
  ENSEMBLE,
  PARAMS,
  SAFETENSORS,
  TEXT_VECTORS,
  TOKENIZER,
  absolute,
  is_checkpoint,
  locate,
  own_folder,
)
from mome_jax.configs import base
from mome_jax.errors import few, writing
from mome_jax.text.tokenizer import DEFAULT_MODEL
from mome_jax.text.vectors import TextVectors


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """What prediction and evaluation need of a model.

  Attributes:
    config: it was made with; see `configs/base.py`.
    params: {'model': ..., 'text': ...}, averaged over training; 'text' is absent when frozen.
    step: of training, or None where nobody knows.
    folder: that holds `tokenizer.model` or `text.npz`.
  """

  config: ml_collections.ConfigDict
  params: Any
  step: int | None
  folder: epath.Path


def save_model(
  folder: epath.PathLike,
  config: ml_collections.ConfigDict,
  params: Any,
  *,
  tokenizer: epath.PathLike = DEFAULT_MODEL,
  vectors: TextVectors | None = None,
  form: str = 'orbax',
) -> None:
  """Writes a model folder: config, parameters with checksums, `tokenizer.model` or `text.npz`.

  Args:
    folder: created where missing.
    config: the whole config, as of `configs/base.py`.
    params: {'model': ..., 'text': ...}; without 'text' the model's text is frozen.
    tokenizer: SentencePiece file of the text encoder.
    vectors: of a frozen model, the embeddings of its classes' default prompts at least.
    form: of the parameters: 'orbax', `params/`, or 'hf', `model.safetensors`.

  Raises:
    CheckpointError: as `new_folder`, if it cannot be written, or a frozen model has no vectors.
  """
  folder = new_folder(folder)
  save_description(folder, config, tokenizer=tokenizer, vectors=vectors)
  with writing(folder, CheckpointError):
    checksums.write(folder, params)
  if form == 'hf':
    hf_folder.save_params(folder, params)
    return
  try:
    with ocp.StandardCheckpointer() as writer:
      writer.save(folder / PARAMS, params)
  except Exception as error:  # Orbax and its storage layers each raise their own
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # one reason is enough
    raise CheckpointError(
      f'{folder}: cannot be written ({brief(error)}); free space, or choose another place'
    ) from error


def new_folder(folder: epath.PathLike) -> epath.Path:
  """The folder that a model is to be written into, created where missing.

  Raises:
    CheckpointError: if it is the name of a model, holds a model, an ensemble or a training run, is
      a checkpoint of one, holds a tokenizer or text vectors without their model, or the
      `config.json` of another program, or cannot be made.
  """
  folder = absolute(own_folder(folder))
  if is_checkpoint(folder):
    raise CheckpointError(f'{folder} is a checkpoint, and no place for a model; choose another')
  if (folder / PARAMS).exists() or (folder / SAFETENSORS).exists():
    raise CheckpointError(f'{folder} holds a model already; remove it or choose another folder')
  for name in (CHECKPOINTS, ENSEMBLE):  # whose config, or whose members, would be hidden
    if (folder / name).exists():
      raise CheckpointError(f'{folder} holds {name}, and is no place for a model; choose another')
  if not (folder / CONFIG).exists():
    for name in (TOKENIZER, TEXT_VECTORS):
      if (folder / name).exists():
        raise CheckpointError(
          f'{folder} holds the {name} of something else, which would be lost; choose another folder'
        )
  elif not _is_ours(folder / CONFIG):
    raise CheckpointError(
      f'{folder} holds the {CONFIG} of another program, and is no place for a model; choose another'
    )
  with writing(folder, CheckpointError):
    folder.mkdir(parents=True, exist_ok=True)
  return folder


def _is_ours(file: epath.Path) -> bool:
  """Whether a `config.json` is of this program, as a model that was written halfway has it."""
  try:
    values = read_config(file)
  except CheckpointError:
    return False
  return isinstance(values, dict) and isinstance(values.get('model'), dict)


def save_description(
  folder: epath.PathLike,
  config: ml_collections.ConfigDict,
  *,
  tokenizer: epath.PathLike = DEFAULT_MODEL,
  vectors: TextVectors | None = None,
) -> None:
  """Writes what a model folder or workdir holds besides parameters; see `save_model`."""
  folder = absolute(folder)
  if config.text.mode != 'frozen':
    vectors = None
  elif vectors is None:
    raise CheckpointError(f'{folder}: a model with frozen text needs its text vectors')
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # First: what lies beside it is known to be this program's.
    text_files.replace(folder / CONFIG, config.to_json_best_effort(indent=2) + '\n')
    if vectors is not None:
      vectors.save(folder / TEXT_VECTORS)
    else:
      text_files.replace(folder / TOKENIZER, epath.Path(tokenizer).read_bytes())
  except OSError as error:
    raise CheckpointError(
      f'{folder}: cannot write what describes the model ({error.strerror}); free space or change '
      'its permissions, and run the same command again'
    ) from error


def load_config(path: epath.PathLike) -> ml_collections.ConfigDict:
  """The config of a model folder, a training workdir or one of its `checkpoints/STEP`.

  Fields that its `config.json` lacks have the values of `configs/base.py`.

  Raises:
    CheckpointError: if there is none, or it has fields of what a model is that this version does
      not know.
  """
  file = locate(path).folder / CONFIG
  config, values = base.get_config(), read_config(file)
  check_fields(file, values, config)
  try:
    with config.unlocked():
      config.update(_tuples(values))
  except (ValueError, TypeError) as error:
    raise CheckpointError(f'{file}: not a config of this program ({error})') from error
  return config


def folder_of(path: epath.PathLike) -> epath.Path:
  """The folder of a model that holds its `config.json`; errors as `load_config`."""
  return locate(path).folder


def text_file(path: epath.PathLike, config: ml_collections.ConfigDict) -> epath.Path:
  """The `text.npz` of a model with frozen text, else its `tokenizer.model`."""
  return locate(path).folder / (TEXT_VECTORS if config.text.mode == 'frozen' else TOKENIZER)


def initialise(params: Any, path: epath.PathLike, but: str = '') -> tuple[Any, list[str]]:
  """Parameters of another model, where the two have the same name and shape.

  Args:
    params: fresh {'model': ..., 'text': ...}, or a part of it, on their devices.
    path: as of `load_model`; its averaged parameters are taken.
    but: regular expression of whole names, 'model/router/bias_1', that are not taken.

  Returns:
    Parameters placed as `params`, and what stayed as it was: names of subtrees and leaves.

  Raises:
    CheckpointError: if there is no model, or not one parameter fits.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  start, fresh = _flat(load_model(path, device).params), _flat(params)
  names = {name for name in start.keys() & fresh.keys() if not re.fullmatch(but, name)}
  fits = {name for name in names if start[name].shape == fresh[name].shape}
  if not fits:
    raise CheckpointError(f'{path}: not one of its parameters fits config.model; choose another')
  taken = {
    name: jax.device_put(np.asarray(start[name]), leaf.sharding) if name in fits else leaf
    for name, leaf in fresh.items()
  }
  return flax.traverse_util.unflatten_dict(taken, sep='/'), _subtrees(fresh.keys() - fits, fits)


def check_fit(params: Any, expected: Any, path: epath.PathLike) -> None:
  """Compares parameters with the shapes that a config asks for.

  Raises:
    CheckpointError: if they differ; the message says where.
  """
  saved, shapes = _flat(params), _flat(expected)
  missing = _subtrees(shapes.keys() - saved.keys(), saved)
  further = _subtrees(saved.keys() - shapes.keys(), shapes)
  other = [name for name in shapes if name in saved and shapes[name].shape != saved[name].shape]
  parts = {'lacks': missing, 'has unknown': further, 'has other shapes of': sorted(other)}
  if any(parts.values()):
    problems = '; '.join(f'it {what} {", ".join(names)}' for what, names in parts.items() if names)
    raise CheckpointError(
      f'{path}: its parameters are not those of its config: {problems}; use the version of this '
      'program that wrote it, or correct config.json'
    )


def _subtrees(names: Iterable[str], others: Iterable[str]) -> list[str]:
  """Shortest paths that cover `names` and none of `others`."""
  taken = {other[:end] for other in others for end in _ends(other)}
  shortest = lambda name: next((name[:end] for end in _ends(name) if name[:end] not in taken), name)
  return sorted(set(map(shortest, names)))


def _ends(path: str) -> list[int]:
  return [*(i for i, letter in enumerate(path) if letter == '/'), len(path)]


def _flat(params) -> dict[str, jax.Array]:
  return flax.traverse_util.flatten_dict(params, sep='/')


def _tuples(value):
  """JSON has no tuples, configs have no lists."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load_model(
  path: epath.PathLike, sharding: jax.sharding.Sharding, choice: str | None = None
) -> TrainedModel:
  """Reads a model; parameters stored in bfloat16 become float32.

  Args:
    path: a model folder, a training workdir, or one of its `checkpoints/STEP`.
    sharding: of every parameter.
    choice: which checkpoint of a workdir: 'last', the newest, or 'best', of the highest smoothed
      Dice on scans set aside; None is what `evaluation.checkpoint` of its config says.

  Raises:
    CheckpointError: if it is none of these, has no best checkpoint, cannot be read, or holds other
      numbers than were written.
  """
  place = locate(path, choice or load_config(path).evaluation.checkpoint)
  if place.params is None:
    raise CheckpointError(f'{place.folder} holds no checkpoint; train first (--mode=train)')
  if place.params.name == SAFETENSORS:
    loaded = hf_folder.load_params(place.params, sharding)
  else:
    loaded = _restored(place.params, sharding)
  wrong = checksums.changed(loaded, checksums.read(place.params))
  if wrong:
    raise CheckpointError(
      f'{place.params}: damaged, not what was written: {few(wrong)}; copy it again or choose '
      'another checkpoint'
    )
  return TrainedModel(load_config(path), loaded, place.step, place.folder)


def _restored(folder: epath.Path, sharding: jax.sharding.Sharding) -> Any:
  """The parameters that Orbax has in a folder."""
  try:
    with ocp.StandardCheckpointer() as reader:
      shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32), sharding=sharding
        ),
        reader.metadata(folder).item_metadata.tree,
      )
      return reader.restore(folder, shapes)
  except Exception as error:  # Orbax and its storage layers each raise their own
    raise CheckpointError(
      f'{folder}: cannot be read ({brief(error)}); copy it again or choose another checkpoint'
    ) from error
