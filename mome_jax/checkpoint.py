"""Saving, resuming and loading: Orbax lives here and nowhere else."""

import contextlib
import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mome_jax.state import TrainState

_ITEMS = ('train', 'ema', 'data')


class CheckpointError(ValueError):
  """A checkpoint is missing or does not fit; the message names it and says what to do."""


class Checkpointer:
  """Checkpoints of one training run under `WORKDIR/checkpoints/STEP`.

  Each holds the items `train` (step, parameters, optimizer), `ema` (what evaluation and prediction
  load) and `data` (JSON: seed and position in the stream of samples). A save is asynchronous and
  atomic: a killed process leaves the previous checkpoint.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
    self._workdir = pathlib.Path(workdir).absolute()
    self._folder = self._workdir / 'checkpoints'
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

  def _check_fits(self, step: int, abstract: TrainState, config) -> None:
    folder = self._folder / str(step)
    with ocp.StandardCheckpointer() as reader:
      saved = reader.metadata(folder / 'ema').item_metadata
    if saved is None:
      raise OSError('its list of parameters cannot be read')
    differences = _differences(_shapes(saved.tree), _shapes(abstract.ema))
    if differences:
      file = self._workdir / 'config.json'
      was = _flat(json.loads(file.read_text())) if file.is_file() else {}
      now = _flat(json.loads(config.to_json_best_effort()))
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
      target.parent.mkdir(exist_ok=True)
      shutil.rmtree(target, ignore_errors=True)
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


def _flat(tree: dict, prefix: str = '') -> dict[str, str]:
  """A nested dict as {'a.b': value}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = str(value)
  return flat


def _differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
  """'name: old -> new' wherever two dicts differ."""
  names = sorted(old.keys() | new.keys())
  pairs = ((name, old.get(name, 'absent'), new.get(name, 'absent')) for name in names)
  return [f'{name}: {a} -> {b}' for name, a, b in pairs if a != b]


def _shortened(items: list[str], limit: int = 3) -> str:
  more = f' and {len(items) - limit} more' if len(items) > limit else ''
  return ', '.join(items[:limit]) + more


def save_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Writes `WORKDIR/config.json`."""
  (pathlib.Path(workdir) / 'config.json').write_text(config.to_json_best_effort(indent=2) + '\n')


def load_ema(workdir: pathlib.Path, sharding: jax.sharding.Sharding) -> tuple[int, Any]:
  """The newest averaged parameters of a training run, on `sharding`, and their step.

  Raises:
    CheckpointError: if the run has no checkpoint.
  """
  folder = pathlib.Path(workdir).absolute() / 'checkpoints'
  steps = sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit())
  if not steps:
    raise CheckpointError(f'{folder} holds no checkpoint; train first (--mode=train)')
  with ocp.StandardCheckpointer() as reader:
    path = folder / str(steps[-1]) / 'ema'
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      reader.metadata(path).item_metadata.tree,
    )
    return steps[-1], reader.restore(path, shapes)
