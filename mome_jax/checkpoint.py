"""Saving, resuming and loading: Orbax lives here and nowhere else."""

import pathlib
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

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
    self._folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._manager = ocp.CheckpointManager(
      self._folder, item_names=_ITEMS, options=ocp.CheckpointManagerOptions(max_to_keep=keep)
    )

  def save(self, step: int, state: TrainState, position: dict[str, int]) -> None:
    """Starts writing `state`, whose arrays may be donated as soon as this returns."""
    train = {'step': state.step, 'params': state.params, 'opt_state': state.opt_state}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        train=ocp.args.StandardSave(train),
        ema=ocp.args.StandardSave(state.ema),
        data=ocp.args.JsonSave(position),
      ),
    )

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, int]] | None:
    """The newest state and its data position, or None if there is no checkpoint.

    Args:
      abstract: ShapeDtypeStructs with shardings, from `init_state`; any mesh.

    Raises:
      CheckpointError: if the checkpoint's tree differs from `abstract`.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    train = {
      'step': abstract.step,
      'params': abstract.params,
      'opt_state': abstract.opt_state,
    }
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          train=ocp.args.StandardRestore(train),
          ema=ocp.args.StandardRestore(abstract.ema),
          data=ocp.args.JsonRestore(),
        ),
      )
    except (ValueError, KeyError) as error:
      raise CheckpointError(
        f'{self._folder / str(step)} does not fit this config ({str(error).splitlines()[0]}); '
        'resume with the config it was made with, or choose another --workdir'
      ) from error
    return TrainState(ema=restored.ema, **restored.train), restored.data

  def close(self) -> None:
    """Waits, then releases the writer threads."""
    self._manager.close()


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
