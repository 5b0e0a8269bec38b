"""What a model folder and a training workdir hold, and where."""

import dataclasses
import json
import os
import re

import orbax.checkpoint as ocp
from etils import epath

from input_pipeline import remarks
from input_pipeline.files.buckets import is_in_bucket
from mome_jax import shipped
from mome_jax.checkpoint import hub
from mome_jax.checkpoint.errors import CheckpointError

CONFIG, TOKENIZER, TEXT_VECTORS = 'config.json', 'tokenizer.model', 'text.npz'
ENSEMBLE = 'ensemble.json'  # names the models that are averaged, in a folder that is none itself
CHECKPOINTS, PARAMS = 'checkpoints', 'params'
SAFETENSORS = 'model.safetensors'  # in place of `params` in folders as on the Hugging Face Hub
METRICS, SCORE = 'metrics', 'dice'  # of a checkpoint that was measured: Orbax's file, its one value
POSITION = 'data/metadata'  # of a checkpoint: where it was in its data, as Orbax writes JSON
_SUCCESS = 'commit_success.txt'  # Orbax's mark of a finished checkpoint in a bucket
LAST, BEST = 'last', 'best'  # choices of `evaluation.checkpoint`


@dataclasses.dataclass(frozen=True)
class Location:
  """Where a model lies.

  Attributes:
    folder: of what describes it: `config.json` and its text.
    params: folder of its parameters, or their safetensors file; None before the first checkpoint.
    step: of training, or None where nobody knows.
  """

  folder: epath.Path
  params: epath.Path | None
  step: int | None


def locate(path: epath.PathLike, choice: str = LAST) -> Location:
  """Where the parts of a model lie.

  Args:
    path: a model folder, a training workdir, one of its `checkpoints/STEP`, or a name as of
      `is_name`.
    choice: which checkpoint of a workdir: 'last', the newest, or 'best'.

  Raises:
    CheckpointError: if it is none of these, or no checkpoint was chosen as the best.
  """
  folder = absolute(path)
  if is_checkpoint(folder):
    place = Location(folder.parent.parent, folder / 'ema', int(folder.name))
  elif (folder / PARAMS).is_dir():
    place = Location(folder, folder / PARAMS, None)
  elif (folder / SAFETENSORS).is_file():
    place = Location(folder, folder / SAFETENSORS, None)
  elif steps := finished_steps(folder / CHECKPOINTS):
    step = best_step(folder / CHECKPOINTS) if choice == BEST else max(steps)
    if step is None and _chooses(folder):
      step = max(steps)
      remarks.tell(
        f'{folder}: no checkpoint is the best: none was measured yet, or no scan set aside '
        f'shows a class; the newest counts, step {step}'
      )
    if step is None:
      raise CheckpointError(
        f'{folder}: no checkpoint was chosen as the best: training needs validation.every and '
        'validation.cases for that; take the newest with --config.evaluation.checkpoint=last'
      )
    place = Location(folder, folder / CHECKPOINTS / str(step) / 'ema', step)
  else:
    place = Location(folder, None, None)
  if (folder / ENSEMBLE).is_file():
    raise CheckpointError(f'{folder}: several models, see its {ENSEMBLE}; choose one of them')
  if not (place.folder / CONFIG).is_file():
    raise CheckpointError(
      f'{folder}: no model there; expected a model folder, the --workdir of a training run or one '
      'of its checkpoints/STEP'
    )
  return place


def is_checkpoint(folder: epath.Path) -> bool:
  """Whether a folder is a `checkpoints/STEP` of a workdir, by its name."""
  return folder.name.isdigit() and folder.parent.name == CHECKPOINTS


def finished_steps(folder: epath.Path) -> list[int]:
  """Steps of the checkpoints in a folder that were written to their end.

  On object stores, which cannot rename a folder, an unfinished one bears a step's name too.
  """
  return ocp.utils.checkpoint_steps(folder)


def _chooses(folder: epath.Path) -> bool:
  """Whether the config of a workdir asks for a choice on scans set aside."""
  try:
    validation = json.loads((folder / CONFIG).read_text(encoding='utf-8'))['validation']
    return bool(validation['every'] and validation['cases'])
  except (OSError, ValueError, KeyError, TypeError):  # told where the config is read
    return False


def best_step(folder: epath.Path) -> int | None:
  """The step of the best checkpoint in a folder, None where none was measured for a choice."""
  scores = {step: _score(folder / str(step)) for step in sorted(finished_steps(folder))}
  measured = {step: score for step, score in scores.items() if score is not None}
  return max(measured, key=measured.__getitem__) if measured else None


def _score(checkpoint: epath.Path) -> float | None:
  file = checkpoint / METRICS / METRICS
  try:
    return float(json.loads(file.read_text(encoding='utf-8'))[SCORE]) if file.is_file() else None
  except (OSError, ValueError, KeyError, TypeError):  # damaged: no reason to trust it
    return None


def move(checkpoint: epath.Path, target: epath.Path) -> None:
  """Moves a checkpoint to another place; in a bucket, which renames no folders, file by file."""
  if not is_in_bucket(checkpoint):
    checkpoint.rename(target)
    return
  _copy(checkpoint, target)
  (checkpoint / _SUCCESS).unlink(missing_ok=True)  # killed from here on, what is left is unfinished
  checkpoint.rmtree()


def _copy(folder: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for path in folder.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name)


def is_name(path: epath.PathLike) -> bool:
  """Whether a path names a model that is no folder of the user's: `shipped`, or `hf:ORG/NAME`.

  The first as a text alone: a `Path` is a place, as what is left of `./shipped`.
  """
  return path == shipped.NAME or hub.is_remote(path)


def own_folder(path: epath.PathLike) -> epath.Path:
  """A folder that something is to be written into; CheckpointError if it is the name of a model.

  The user's folder `./shipped` is none, and keeps its whole path, as `shipped` would become one.
  """
  if is_name(path):
    raise CheckpointError(f'{path}: is the name of a model, no folder for one; choose another')
  folder = epath.Path(path)
  return absolute(path) if is_name(os.fspath(folder)) else folder


def results_of(path: epath.PathLike) -> epath.Path:
  """The folder for what is measured of a model: its own, or one in `runs` where it has a name.

  Raises:
    CheckpointError: if a run or a model of the user's lies there, which has results of its own.
  """
  if not is_name(path):
    return epath.Path(path)
  name = os.fspath(path).removeprefix(hub.PREFIX)
  place = epath.Path('runs') / re.sub(r'[^\w.-]+', '--', name)
  if any((place / part).exists() for part in (CONFIG, CHECKPOINTS, ENSEMBLE)):
    raise CheckpointError(
      f'{place} holds another model, whose results those of {path} would replace; rename that '
      f'folder, or, if it is a copy of {path}, give --workdir={place}'
    )
  return place


def absolute(path: epath.PathLike) -> epath.Path:
  """The same place from every working directory; of a name, see `is_name`, where its files are."""
  if path == shipped.NAME:
    return epath.Path(shipped.MODEL)
  if hub.is_remote(path):
    return hub.fetch(os.fspath(path))
  path = epath.Path(path).expanduser()
  # NOTE: epath's resolve takes gs://bucket for a relative local path.
  return path if is_in_bucket(path) else path.resolve()
