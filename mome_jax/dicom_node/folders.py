"""Folders of a node, which are moved without loss."""

import os
import pathlib
import shutil

from mome_jax.errors import one_line


def move(place: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a folder; into one that is there go its files, in place of those of the same name.

  Raises:
    OSError: of the disk; what was not moved stays where it was.
  """
  if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    place.rename(target)
    return
  for path in place.iterdir():
    if (target / path.name).is_dir():
      shutil.rmtree(target / path.name)
    os.replace(path, target / path.name)
  place.rmdir()


def unused(place: pathlib.Path) -> pathlib.Path:
  """A place where nothing is: this one, else PLACE-2, PLACE-3, ..., which no identifier is."""
  chosen, number = place, 1
  while chosen.exists():
    number += 1
    chosen = place.with_name(f'{place.name}-{number}')
  return chosen


def refusal(error: OSError) -> str:
  """What the disk refuses, in a line."""
  return f'{error.filename or "the disk"}: {error.strerror or one_line(error)}'
