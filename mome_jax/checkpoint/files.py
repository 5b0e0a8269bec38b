"""What a model folder and a training workdir hold, and where."""

import dataclasses
import os

import orbax.checkpoint as ocp
from etils import epath

from mome_jax.checkpoint.errors import CheckpointError

CONFIG, TOKENIZER, TEXT_VECTORS = 'config.json', 'tokenizer.model', 'text.npz'
CHECKPOINTS, PARAMS = 'checkpoints', 'params'


@dataclasses.dataclass(frozen=True)
class Location:
  """Where a model lies.

  Attributes:
    folder: of what describes it: `config.json` and its text.
    params: folder of its parameters; None before the first checkpoint.
    step: of training, or None where nobody knows.
  """

  folder: epath.Path
  params: epath.Path | None
  step: int | None


def locate(path: epath.PathLike) -> Location:
  """Where the parts of a model lie.

  Args:
    path: a model folder, a training workdir, or one of its `checkpoints/STEP`.

  Raises:
    CheckpointError: if it is none of these.
  """
  folder = absolute(path)
  if folder.name.isdigit() and folder.parent.name == CHECKPOINTS:
    place = Location(folder.parent.parent, folder / 'ema', int(folder.name))
  elif (folder / PARAMS).is_dir():
    place = Location(folder, folder / PARAMS, None)
  elif steps := finished_steps(folder / CHECKPOINTS):
    place = Location(folder, folder / CHECKPOINTS / str(max(steps)) / 'ema', max(steps))
  else:
    place = Location(folder, None, None)
  if not (place.folder / CONFIG).is_file():
    raise CheckpointError(
      f'{folder}: no model there; expected a model folder, the --workdir of a training run or one '
      'of its checkpoints/STEP'
    )
  return place


def finished_steps(folder: epath.Path) -> list[int]:
  """Steps of the checkpoints in a folder that were written to their end.

  On object stores, which cannot rename a folder, an unfinished one bears a step's name too.
  """
  return ocp.utils.checkpoint_steps(folder)


def absolute(path: epath.PathLike) -> epath.Path:
  """The same place from every working directory."""
  path = epath.Path(path).expanduser()
  # NOTE: epath's resolve takes gs://bucket for a relative local path.
  return path if '://' in os.fspath(path) else path.resolve()
