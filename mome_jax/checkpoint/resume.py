"""Saving and resuming a training run."""

import contextlib
import enum
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from input_pipeline.files import text_files
from input_pipeline.files.buckets import is_in_bucket
from mome_jax.checkpoint import checksums, same_run
from mome_jax.checkpoint.errors import CheckpointError, brief
from mome_jax.checkpoint.files import (
  CHECKPOINTS,
  CONFIG,
  METRICS,
  POSITION,
  SCORE,
  absolute,
  finished_steps,
  move,
)
from mome_jax.errors import few
from mome_jax.runtime import jax_errors


class State(Protocol):
  """What is saved of a run: see `training.state.TrainState`."""

  step: jax.Array
  params: Any
  ema: Any
  opt_state: Any

  def replace(self, **changes: Any) -> Self:
    """The same with other values."""


S = TypeVar('S', bound=State)
Position = dict[str, Any]  # in the stream of samples: step, seed, digests of the data
_ITEMS = ('train', 'ema', 'data')
_START, _DAMAGED = 'start', 'damaged'
_WAITS = (2.0, 10.0, 30.0)  # seconds before a checkpoint is read again, after a passing error
# What TensorStore says of a file that is missing, cut short or fails its checksum.
_PROOFS = ('NOT_FOUND:', 'DATA_LOSS:', 'OUT_OF_RANGE:', 'Error decoding')


class _Outcome(enum.IntEnum):
  """Of reading a checkpoint; of several hosts the highest counts."""

  READ = 0
  DAMAGED = 1  # proven: a file is missing or its content is not what was written
  PASSING = 2  # the storage may answer the next time
  REFUSED = 3  # no permission or no memory: the next time is no better


class _Manager(ocp.CheckpointManager):
  """One that does not ask whether the run is to end.

  It would ask JAX by the step. JAX agrees on the number after the highest that it was ever asked
  by, and `multihost.Preemption` counts its calls: it would come to a step thousands of calls later.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpointer:
  """Checkpoints of one training run under `WORKDIR/checkpoints/STEP`.

  Each holds the items `train` (step, parameters, optimizer), `ema` (what evaluation and prediction
  load) and `data` (JSON: seed and position in the stream of samples, checksums of all arrays). The
  newest ones are kept, and the one with the highest score. A save is asynchronous and
  atomic: a killed process leaves the previous checkpoint. `WORKDIR/start` holds the parameters that
  the run began with.
  """

  def __init__(self, workdir, *, keep: int = 2):
    self._workdir = absolute(workdir)
    self._folder = self._workdir / CHECKPOINTS
    policies = ocp.checkpoint_managers
    newest = policies.LatestN(keep)
    best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy([newest, best]),
      best_fn=_score,  # also for runs that choose nothing any more: an earlier best one stays
      cleanup_tmp_directories=True,
    )
    try:
      self._manager = _Manager(self._folder, item_names=_ITEMS, options=options)
    except OSError as error:
      raise CheckpointError(
        f'{self._folder}: no folder to write checkpoints into ({error.strerror or error}); choose '
        'another --workdir'
      ) from error

  def save(self, step: int, state: State, position: Position, score: float | None = None) -> None:
    """Starts writing `state`, whose arrays may be donated as soon as this returns.

    Args:
      step: number of steps done.
      state: after them.
      position: to go on from.
      score: to choose the best checkpoint by; None of one that is not to be chosen.

    Raises:
      CheckpointError: if this or the previous checkpoint could not be written.
    """
    train = _train_item(state)
    sums = {'train': checksums.of_tree(train), 'ema': checksums.of_tree(state.ema)}
    with self._explained():
      self._manager.save(
        step,
        metrics=None if score is None else {SCORE: score},
        args=ocp.args.Composite(
          train=ocp.args.StandardSave(train),
          ema=ocp.args.StandardSave(state.ema),
          data=ocp.args.JsonSave(checksums.signed(position, sums)),
        ),
      )

  def rate(self, step: int, choice: Mapping[str, Any], score: float | None) -> None:
    """Notes in a checkpoint what was measured once it was written; all processes must call.

    Args:
      step: of the checkpoint.
      choice: what its position says of `validation` from now on.
      score: as of `save`.

    Raises:
      CheckpointError: if it cannot be written.
    """
    folder = self._folder / str(step)
    with self._explained():
      if jax.process_index() == 0:
        if score is not None:
          (folder / METRICS).mkdir(exist_ok=True)
          text_files.replace(folder / METRICS / METRICS, json.dumps({SCORE: score}))
        # Last: until then it is measured once more.
        noted = json.loads(text_files.read_text(folder / POSITION))
        position = checksums.unsigned(noted) | {'validation': choice}
        signed = checksums.signed(position, checksums.arrays(noted))
        text_files.replace(folder / POSITION, json.dumps(signed))
      multihost_utils.sync_global_devices(f'rate {step}')
      self._manager.reload()

  def restore(self, abstract: S, config: ml_collections.ConfigDict) -> tuple[S, Position] | None:
    """The newest readable state and its data position, or None if there is no checkpoint.

    Where files of the newest are missing or corrupt, or give other numbers than were written, the
    one before it is taken: training will write that step again. The damaged one is named and, once
    the other has been read, moved to `WORKDIR/damaged/`. Any other error moves nothing: what may
    pass is tried again for a while.

    Args:
      abstract: ShapeDtypeStructs with shardings, from `init_state`; any mesh.
      config: of the run, to tell what differs from the checkpoint's.

    Raises:
      CheckpointError: if parameters or optimizer differ from `abstract`, no checkpoint can be read,
        or there is none but a damaged one.
    """
    damaged: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      restored, reason = self._try(step, abstract, config)
      if restored is not None:
        for other, why in damaged.items():
          self._set_aside(other, why)
        position = checksums.unsigned(restored.data)
        return abstract.replace(ema=restored.ema, **restored.train), position
      damaged[step] = reason
    if damaged:
      newest, reason = next(iter(damaged.items()))
      raise CheckpointError(
        f'no checkpoint in {self._folder} can be read; of the newest, {newest}: {reason}. Nothing '
        'was moved: bring one back from a copy, or remove that folder to start from the beginning'
      )
    folder = self._workdir / _DAMAGED
    if folder.is_dir() and any(folder.iterdir()):
      raise CheckpointError(
        f'{self._workdir} holds no checkpoint but damaged ones in {folder}. Bring one back from a '
        'copy, or remove that folder to start from the beginning'
      )
    return None

  def _try(self, step: int, abstract: State, config) -> tuple[Any, str]:
    """What a checkpoint holds, or None and what is damaged."""
    for wait in (*_WAITS, None):
      restored, reason = None, 'another host cannot read it'
      try:
        self._check_fits(step, abstract, config)
        restored, outcome = self._read(step, abstract), _Outcome.READ
      except CheckpointError:
        raise
      except Exception as error:  # Orbax and its storage layers each raise their own
        reason, outcome = brief(error), _classify(error)
      outcome = _worst_of_all_hosts(outcome)
      if outcome == _Outcome.READ:
        outcome, reason = _compare(restored)
        outcome = _worst_of_all_hosts(outcome)
      if outcome == _Outcome.READ:
        return restored, ''
      if outcome == _Outcome.DAMAGED:
        return None, reason
      if outcome == _Outcome.REFUSED or wait is None:
        break
      _say(f'{self._folder / str(step)} cannot be read ({reason}); next try in {wait:g} s')
      time.sleep(wait)
    raise CheckpointError(
      f'{self._folder / str(step)} cannot be read ({reason}). That is no sign of damage, and '
      'nothing was moved: see to memory, permissions and network, then run the same command again'
    )

  def save_start(self, params: Any) -> None:
    """Keeps the parameters that a run begins with in `WORKDIR/start`, in place of earlier ones.

    Raises:
      CheckpointError: if they could not be written.
    """
    with self._explained(), ocp.StandardCheckpointer() as writer:
      writer.save(self._workdir / _START, params, force=True)

  def load_start(self, abstract: State) -> Any:
    """What `save_start` kept, placed as `abstract.params`; None where that is not known."""
    params, outcome = None, _Outcome.READ
    try:
      with ocp.StandardCheckpointer() as reader:
        params = reader.restore(self._workdir / _START, abstract.params)
    except Exception as error:  # nothing but columns of the log depend on it
      outcome = _classify(error)
      _say(
        f'note: {self._workdir / _START} cannot be read ({brief(error)}); how far the '
        'parameters moved will not be logged'
      )
    return params if _worst_of_all_hosts(outcome) == _Outcome.READ else None

  def _check_fits(self, step: int, abstract: State, config) -> None:
    """Compares parameters and optimizer with those of a checkpoint, as far as it lists them."""
    folder = self._folder / str(step)
    for kind, item, tree in (
      ('Parameters', 'ema', abstract.ema),
      ('Optimizer', 'train', _train_item(abstract)),
    ):
      with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(folder / item).item_metadata
      if saved is None:  # reading it tells why
        continue
      differs = same_run.differences(_shapes(saved.tree), _shapes(tree))
      if differs:
        file = self._workdir / CONFIG
        changed = same_run.config_changes(file, config) if file.is_file() else {}
        raise CheckpointError(
          f'{folder} does not fit this config. Changed: '
          f'{few([*changed.values()] or ["nothing in config.json"])}. {kind}: '
          f'{few([*differs.values()])}. Resume with the config and the version of this '
          'program that it was made with, or choose another --workdir'
        )

  def _read(self, step: int, abstract: State):
    return self._manager.restore(
      step,
      args=ocp.args.Composite(
        train=ocp.args.StandardRestore(_train_item(abstract)),
        ema=ocp.args.StandardRestore(abstract.ema),
        data=ocp.args.JsonRestore(),
      ),
    )

  def _set_aside(self, step: int, reason: str) -> None:
    _say(
      f'warning: {self._folder / str(step)} is damaged ({reason}); moved to '
      f'{self._workdir / _DAMAGED}, using the checkpoint before it'
    )
    if jax.process_index() == 0:
      target = self._workdir / _DAMAGED / str(step)
      target.parent.mkdir(parents=True, exist_ok=True)
      if target.exists():
        target.rmtree()
      move(self._folder / str(step), target)
    multihost_utils.sync_global_devices(f'set aside {step}')
    self._manager.reload()

  def close(self) -> None:
    """Waits until all is written, then releases the writer threads.

    Raises:
      CheckpointError: if the last checkpoint could not be written.
    """
    with self._explained():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  @contextlib.contextmanager
  def _explained(self):
    """What goes wrong while writing, as a CheckpointError that names the last good checkpoint."""
    try:
      yield
    except Exception as error:  # Orbax and its storage layers each raise their own
      if jax_errors.is_lost_process(error):  # who waits for others in a save
        raise
      # One reason is enough: each array that was not written would print a traceback of its own.
      logging.getLogger('asyncio').setLevel(logging.CRITICAL)
      steps = finished_steps(self._folder)
      good = f'{self._folder / str(max(steps))} is complete' if steps else 'there is none yet'
      is_bucket = is_in_bucket(self._folder)
      mend = "See to the bucket's billing and permissions" if is_bucket else 'Free space'
      raise CheckpointError(
        f'cannot write a checkpoint into {self._folder} ({brief(error)}); of the earlier '
        f'ones, {good}. {mend} and run the same command again'
      ) from error


def read_position(workdir: epath.PathLike) -> Position:
  """What the newest checkpoint of a run was saved with, as `Checkpointer.restore` gives it.

  Raises:
    CheckpointError: if there is none, or it cannot be read.
  """
  folder = absolute(workdir) / CHECKPOINTS
  file = folder / str(max(finished_steps(folder), default=0)) / POSITION
  try:
    return checksums.unsigned(json.loads(text_files.read_explained(file, CheckpointError)))
  except (ValueError, AttributeError) as error:
    raise CheckpointError(f'{file}: damaged ({error}); copy the run again') from error


def _compare(restored: Any) -> tuple[_Outcome, str]:
  """Whether a checkpoint holds what was written; on all hosts, whose arrays these are."""
  try:
    sums = checksums.arrays(restored.data)
  except ValueError as error:
    return _Outcome.DAMAGED, str(error)
  wrong = [
    f'{item}/{name}'
    for item in ('train', 'ema')
    for name in checksums.changed(restored[item], sums.get(item))
  ]
  return (_Outcome.DAMAGED if wrong else _Outcome.READ), f'not what was written: {few(wrong)}'


def _score(metrics: Mapping[str, float]) -> float:
  return metrics[SCORE]


def _train_item(state: State) -> dict[str, Any]:
  return {'step': state.step, 'params': state.params, 'opt_state': state.opt_state}


def _classify(error: BaseException | None) -> _Outcome:
  """What an error of reading, or one that it came from, proves."""
  outcome = _Outcome.PASSING
  while error is not None:
    if isinstance(error, PermissionError | MemoryError):
      return _Outcome.REFUSED
    text = str(error)
    if 'PERMISSION_DENIED' in text or 'RESOURCE_EXHAUSTED' in text:
      return _Outcome.REFUSED
    missing_or_garbled = FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError
    if isinstance(error, missing_or_garbled) or any(proof in text for proof in _PROOFS):
      outcome = _Outcome.DAMAGED
    error = error.__cause__ or error.__context__
  return outcome


def _worst_of_all_hosts(outcome: _Outcome) -> _Outcome:
  return _Outcome(int(np.max(multihost_utils.process_allgather(np.array(int(outcome))))))


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def _shapes(tree) -> dict[str, str]:
  """Shapes of all arrays by path, and what of the structure holds none: Orbax compares it too."""
  is_empty = lambda node: node is None or (isinstance(node, tuple | list | dict) and not node)
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_empty)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {
    name(path): 'empty' if is_empty(leaf) else str(tuple(leaf.shape)) for path, leaf in leaves
  }
