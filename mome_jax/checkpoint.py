"""Saving, resuming and loading: Orbax lives here and nowhere else."""

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mome_jax.configs import base
from mome_jax.errors import UserError
from mome_jax.state import TrainState
from mome_jax.text.tokenizer import DEFAULT_MODEL
from mome_jax.text.vectors import TextVectors

CONFIG, TOKENIZER, TEXT_VECTORS = 'config.json', 'tokenizer.model', 'text.npz'
_CHECKPOINTS, _PARAMS, _START = 'checkpoints', 'params', 'start'
_ITEMS = ('train', 'ema', 'data')


class CheckpointError(UserError):
  """A checkpoint is missing or does not fit; the message names it and says what to do."""


class Checkpointer:
  """Checkpoints of one training run under `WORKDIR/checkpoints/STEP`.

  Each holds the items `train` (step, parameters, optimizer), `ema` (what evaluation and prediction
  load) and `data` (JSON: seed and position in the stream of samples). A save is asynchronous and
  atomic: a killed process leaves the previous checkpoint.
  """

  def __init__(self, workdir, *, keep: int = 2):
    self._workdir = _absolute(workdir)
    self._folder = self._workdir / _CHECKPOINTS
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager(self._folder, item_names=_ITEMS, options=options)

  def save(self, step: int, state: TrainState, position: dict[str, int]) -> None:
    """Starts writing `state`, whose arrays may be donated as soon as this returns.

    Raises:
      CheckpointError: if this or the previous checkpoint could not be written.
    """
    with self._explained():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          train=ocp.args.StandardSave(_train_item(state)),
          ema=ocp.args.StandardSave(state.ema),
          data=ocp.args.JsonSave(position),
        ),
      )

  def restore(
    self, abstract: TrainState, config: ml_collections.ConfigDict
  ) -> tuple[TrainState, dict[str, int]] | None:
    """The newest readable state and its data position, or None if there is no checkpoint.

    A checkpoint that cannot be read is named and moved to `WORKDIR/damaged/`, and the one before it
    is taken: training will write that step again.

    Args:
      abstract: ShapeDtypeStructs with shardings, from `init_state`; any mesh.
      config: of the run, to tell what differs from the checkpoint's.

    Raises:
      CheckpointError: if the parameters differ from `abstract`, or no checkpoint can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        self._check_fits(step, abstract, config)
        restored, reason = self._read(step, abstract), None
      except CheckpointError:
        raise
      except Exception as error:  # Orbax and its storage layers each raise their own
        restored, reason = None, _first_line(error)
      if _on_all_hosts(restored is not None):
        return TrainState(ema=restored.ema, **restored.train), restored.data
      self._set_aside(step, reason or 'another host cannot read it')
    if steps:
      raise CheckpointError(
        f'no checkpoint in {self._folder} can be read; they are in {self._workdir / "damaged"}. '
        'Run again to start from the beginning'
      )
    return None

  def save_start(self, params: Any) -> None:
    """Keeps the parameters that a run starts from in `WORKDIR/start`, in place of earlier ones.

    Raises:
      CheckpointError: if they could not be written.
    """
    with self._explained(), ocp.StandardCheckpointer() as writer:
      writer.save(self._workdir / _START, params, force=True)

  def load_start(self, abstract: TrainState) -> Any:
    """What `save_start` kept, placed as `abstract.params`; None where that is not known."""
    try:
      with ocp.StandardCheckpointer() as reader:
        return reader.restore(self._workdir / _START, abstract.params)
    except Exception as error:  # nothing but a column of the log depends on it
      if jax.process_index() == 0:
        print(
          f'note: {self._workdir / _START} cannot be read ({_first_line(error)}); how far the '
          'parameters moved will not be logged',
          file=sys.stderr,
        )
      return None

  def _check_fits(self, step: int, abstract: TrainState, config) -> None:
    folder = self._folder / str(step)
    with ocp.StandardCheckpointer() as reader:
      saved = reader.metadata(folder / 'ema').item_metadata
    if saved is None:
      raise OSError('its list of parameters cannot be read')
    differences = _differences(_shapes(saved.tree), _shapes(abstract.ema))
    if differences:
      file = self._workdir / CONFIG
      was = _flat_values(json.loads(file.read_text())) if file.is_file() else {}
      now = _flat_values(json.loads(config.to_json_best_effort()))
      changed = was and _differences(was, now) or ['nothing in config.json']
      raise CheckpointError(
        f'{folder} does not fit this config. Changed: {_shortened(changed)}. Parameters: '
        f'{_shortened(differences)}. Resume with the config it was made with, or choose another '
        '--workdir'
      )

  def _read(self, step: int, abstract: TrainState):
    return self._manager.restore(
      step,
      args=ocp.args.Composite(
        train=ocp.args.StandardRestore(_train_item(abstract)),
        ema=ocp.args.StandardRestore(abstract.ema),
        data=ocp.args.JsonRestore(),
      ),
    )

  def _set_aside(self, step: int, reason: str) -> None:
    if jax.process_index() == 0:
      print(
        f'warning: {self._folder / str(step)} is damaged ({reason}); moved to '
        f'{self._workdir / "damaged"}, using the checkpoint before it',
        file=sys.stderr,
        flush=True,
      )
      target = self._workdir / 'damaged' / str(step)
      target.parent.mkdir(parents=True, exist_ok=True)
      if target.exists():
        target.rmtree()
      (self._folder / str(step)).rename(target)
    multihost_utils.sync_global_devices(f'set aside {step}')
    self._manager.reload()

  def close(self) -> None:
    """Waits until all is written, then releases the writer threads.

    Raises:
      CheckpointError: if the last checkpoint could not be written.
    """
    with self._explained():
      self._manager.wait_until_finished()
    self._manager.close()

  @contextlib.contextmanager
  def _explained(self):
    """What goes wrong while writing, as a CheckpointError that names the last good checkpoint."""
    try:
      yield
    except Exception as error:  # Orbax and its storage layers each raise their own
      # One reason is enough: each array that was not written would print a traceback of its own.
      logging.getLogger('asyncio').setLevel(logging.CRITICAL)
      steps = [int(p.name) for p in self._folder.glob('*') if p.name.isdigit()]
      good = f'{self._folder / str(max(steps))} is complete' if steps else 'there is none yet'
      raise CheckpointError(
        f'cannot write a checkpoint into {self._folder} ({_first_line(error)}); of the earlier '
        f'ones, {good}. Free space and run the same command again'
      ) from error


def _train_item(state: TrainState) -> dict[str, Any]:
  return {'step': state.step, 'params': state.params, 'opt_state': state.opt_state}


def _first_line(error: Exception) -> str:
  return str(error).strip().split('\n')[0][:300] or type(error).__name__


def _on_all_hosts(flag: bool) -> bool:
  return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def _shapes(tree) -> dict[str, str]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {'/'.join(str(k.key) for k in path): str(tuple(leaf.shape)) for path, leaf in leaves}


def _flat_values(tree: dict) -> dict[str, str]:
  return {k: str(v) for k, v in flax.traverse_util.flatten_dict(tree, sep='.').items()}


def _differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
  """'name: old -> new' wherever two dicts differ."""
  names = sorted(old.keys() | new.keys())
  pairs = ((name, old.get(name, 'absent'), new.get(name, 'absent')) for name in names)
  return [f'{name}: {a} -> {b}' for name, a, b in pairs if a != b]


def _shortened(items: list[str], limit: int = 3) -> str:
  more = f' and {len(items) - limit} more' if len(items) > limit else ''
  return ', '.join(items[:limit]) + more


# ---------------------------------------------------------------------------- model folders
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
  folder,
  config: ml_collections.ConfigDict,
  params: Any,
  *,
  tokenizer=DEFAULT_MODEL,
  vectors: TextVectors | None = None,
) -> None:
  """Writes a model folder: `config.json`, `params/`, and `tokenizer.model` or `text.npz`.

  Args:
    folder: created where missing.
    config: the whole config, as of `configs/base.py`.
    params: {'model': ..., 'text': ...}; without 'text' the model's text is frozen.
    tokenizer: SentencePiece file of the text encoder.
    vectors: of a frozen model, the embeddings of its classes' default prompts at least.

  Raises:
    CheckpointError: if the folder holds a model already, or a frozen model comes without vectors.
  """
  folder = _absolute(folder)
  if (folder / _PARAMS).exists():
    raise CheckpointError(f'{folder} holds a model already; remove it or choose another folder')
  save_description(folder, config, tokenizer=tokenizer, vectors=vectors)
  with ocp.StandardCheckpointer() as writer:
    writer.save(folder / _PARAMS, params)


def save_description(
  folder,
  config: ml_collections.ConfigDict,
  *,
  tokenizer=DEFAULT_MODEL,
  vectors: TextVectors | None = None,
) -> None:
  """Writes what a model folder or workdir holds besides parameters; see `save_model`."""
  folder = _absolute(folder)
  frozen = config.text.mode == 'frozen'
  if frozen and vectors is None:
    raise CheckpointError(f'{folder}: a model with frozen text needs its text vectors')
  folder.mkdir(parents=True, exist_ok=True)
  if frozen:
    vectors.save(folder / TEXT_VECTORS)
  else:
    (folder / TOKENIZER).write_bytes(epath.Path(tokenizer).read_bytes())
  (folder / CONFIG).write_text(config.to_json_best_effort(indent=2) + '\n')


def load_config(path) -> ml_collections.ConfigDict:
  """The config of a model folder, a training workdir or one of its `checkpoints/STEP`.

  Fields that its `config.json` lacks have the values of `configs/base.py`.

  Raises:
    CheckpointError: if there is none.
  """
  file = _locate(path)[0] / CONFIG
  config = base.get_config()
  try:
    with config.unlocked():
      config.update(_tuples(json.loads(file.read_text())))
  except (ValueError, TypeError) as error:
    raise CheckpointError(f'{file}: not a config of this program ({error})') from error
  return config


def folder_of(path) -> epath.Path:
  """The folder of a model that holds its `config.json`; errors as `load_config`."""
  return _locate(path)[0]


def text_file(path, config: ml_collections.ConfigDict) -> epath.Path:
  """The `text.npz` of a model with frozen text, else its `tokenizer.model`."""
  return _locate(path)[0] / (TEXT_VECTORS if config.text.mode == 'frozen' else TOKENIZER)


def find_tokenizer(workdir, config: ml_collections.ConfigDict) -> epath.Path:
  """The vocabulary to train with; a text encoder's weights are useless with any other.

  That of the run's own earlier steps, of the model it starts from, or the built-in one.
  """
  places = [_absolute(workdir)]
  if config.init.checkpoint:
    places.append(_locate(config.init.checkpoint)[0])
  files = [place / TOKENIZER for place in places]
  return next((file for file in files if file.is_file()), epath.Path(DEFAULT_MODEL))


def initialise(params: Any, path) -> tuple[Any, list[str]]:
  """Parameters of another model, where the two have the same name and shape.

  Args:
    params: fresh {'model': ..., 'text': ...}, on their devices.
    path: as of `load_model`; its averaged parameters are taken.

  Returns:
    Parameters placed as `params`, and what stayed as it was: names of subtrees and leaves.

  Raises:
    CheckpointError: if there is no model, or not one parameter fits.
  """
  found = _flat(load_model(path, jax.sharding.SingleDeviceSharding(jax.local_devices()[0])).params)
  own = _flat(params)
  fits = {name for name, leaf in own.items() if name in found and found[name].shape == leaf.shape}
  if not fits:
    raise CheckpointError(f'{path}: not one of its parameters fits config.model; choose another')
  taken = {
    name: jax.device_put(np.asarray(found[name]), leaf.sharding) if name in fits else leaf
    for name, leaf in own.items()
  }
  return flax.traverse_util.unflatten_dict(taken, sep='/'), _subtrees(own.keys() - fits, fits)


def check_fit(params: Any, expected: Any, path) -> None:
  """Compares parameters with the shapes that a config asks for.

  Raises:
    CheckpointError: if they differ; the message says where.
  """
  found, wanted = _flat(params), _flat(expected)
  missing = _subtrees(wanted.keys() - found.keys(), found)
  further = _subtrees(found.keys() - wanted.keys(), wanted)
  other = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
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


def load_model(path, sharding: jax.sharding.Sharding) -> TrainedModel:
  """Reads a model; parameters stored in bfloat16 become float32.

  Args:
    path: a model folder, a training workdir (its newest checkpoint), or one of its
      `checkpoints/STEP`.
    sharding: of every parameter.

  Raises:
    CheckpointError: if it is none of these, or cannot be read.
  """
  folder, params, step = _locate(path)
  if params is None:
    raise CheckpointError(f'{folder} holds no checkpoint; train first (--mode=train)')
  try:
    with ocp.StandardCheckpointer() as reader:
      shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32), sharding=sharding
        ),
        reader.metadata(params).item_metadata.tree,
      )
      loaded = reader.restore(params, shapes)
  except Exception as error:  # Orbax and its storage layers each raise their own
    reason = str(error).split('\n')[0] or type(error).__name__
    raise CheckpointError(
      f'{params}: cannot be read ({reason}); copy it again or choose another checkpoint'
    ) from error
  return TrainedModel(load_config(path), loaded, step, folder)


def _locate(path) -> tuple[epath.Path, epath.Path | None, int | None]:
  """Where the description lies, where the parameters (None: not there yet), and their step."""
  folder = _absolute(path)
  if folder.name.isdigit() and folder.parent.name == _CHECKPOINTS:
    found = folder.parent.parent, folder / 'ema', int(folder.name)
  elif (folder / _PARAMS).is_dir():
    found = folder, folder / _PARAMS, None
  else:
    steps = [int(p.name) for p in (folder / _CHECKPOINTS).glob('*') if p.name.isdigit()]
    newest = max(steps, default=None)
    found = folder, steps and folder / _CHECKPOINTS / str(newest) / 'ema' or None, newest
  if not (found[0] / CONFIG).is_file():
    raise CheckpointError(
      f'{folder}: no model there; expected a model folder, the --workdir of a training run or one '
      'of its checkpoints/STEP'
    )
  return found


def _absolute(path) -> epath.Path:
  path = epath.Path(path).expanduser()
  # NOTE: epath's resolve takes gs://bucket for a relative local path.
  return path if '://' in os.fspath(path) else path.resolve()
