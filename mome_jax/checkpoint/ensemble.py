"""Folders that name several models whose logits are averaged."""

import json
import os
from collections.abc import Iterable, Sequence

from etils import epath

from input_pipeline.files import text_files
from input_pipeline.files.buckets import is_in_bucket
from mome_jax import shipped
from mome_jax.checkpoint import hub
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.checkpoint.files import ENSEMBLE, absolute
from mome_jax.errors import writing

_FIELD = 'members'


def members(path: epath.PathLike) -> list[epath.PathLike]:
  """The models of an ensemble's folder, or the path itself, as it is, where it is none.

  Raises:
    CheckpointError: if `ensemble.json` cannot be read, or names nothing.
  """
  folder = absolute(path)
  file = folder / ENSEMBLE
  if not file.is_file():
    return [path]  # `./shipped` is no name, and would become one
  text = text_files.read_explained(file, CheckpointError)
  try:
    names = json.loads(text)[_FIELD]
    if not text_files.are_texts(names):
      raise TypeError('no list of folders')
  except (ValueError, KeyError, TypeError) as error:
    raise CheckpointError(
      f'{file}: expected {{"{_FIELD}": ["FOLDER", ...]}} ({error!r}); write it again'
    ) from error
  if not names:
    raise CheckpointError(f'{file}: names no model; write the folders of some')
  return [_place(folder, name) for name in names]


def _place(folder: epath.Path, name: str) -> epath.Path:
  """A member that a folder names: beside it, or anywhere as on the command line."""
  elsewhere = hub.is_remote(name) or is_in_bucket(name)
  return epath.Path(name) if elsewhere else folder / os.path.expanduser(name)


def write_members(folder: epath.PathLike, names: Sequence[str]) -> None:
  """Writes `ensemble.json`: the members' folders, as seen from the ensemble's.

  Raises:
    CheckpointError: if it cannot be written.
  """
  text = json.dumps({_FIELD: list(names)}, indent=2)
  with writing(absolute(folder), CheckpointError):
    text_files.replace(absolute(folder) / ENSEMBLE, text + '\n')


def expand(paths: Iterable[epath.PathLike]) -> list[str]:
  """Every model that some paths name, members of ensembles one by one."""
  found = [member for path in paths for member in members(path)]
  # A `Path` is a place; as a text it would be a name.
  here = lambda path: path != shipped.NAME and os.fspath(path) == shipped.NAME
  return [f'./{path}' if here(path) else os.fspath(path) for path in found]
