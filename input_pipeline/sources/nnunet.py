"""What the `dataset.json` of nnU-Net says of files: ending, channels, where they lie."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.files import inventory
from input_pipeline.sources import files
from input_pipeline.sources.base import SourceError

_CT = ('ct', 'cta', 'cbct', 'cect', 'ncct')


def check_channels(index: Mapping[str, Any], path: pathlib.Path) -> bool:
  """Whether more channels than the CT are declared, which are not used.

  Args:
    index: content of `dataset.json`; `channel_names`, or the older `modality`, number -> name.
    path: of it, for messages.

  Raises:
    SourceError: if the first channel is declared, and is no CT.
  """
  key = 'channel_names' if 'channel_names' in index else 'modality'
  named = index.get(key)
  if named is None:
    return False
  if not isinstance(named, Mapping) or '0' not in named:
    raise SourceError(f'{path}: "{key}" is {named!r}; expected {{"0": "CT"}}')
  first = str(named['0'])
  if not {*first.casefold().replace('-', ' ').replace('_', ' ').split()} & {*_CT}:
    raise SourceError(
      f'{path}: channel 0 is {first!r}; CT is what is trained on: if it is one, write '
      f'"{key}": {{"0": "CT"}}'
    )
  return len(named) > 1


def check_ending(
  index: Mapping[str, Any], path: pathlib.Path, names: Sequence[pathlib.Path]
) -> None:
  """Tells of files that end otherwise than declared: nnU-Net would pass them over.

  Args:
    index: content of `dataset.json`; `file_ending`, such as `.nrrd`.
    path: of it, for messages.
    names: of scans and label maps.

  Warns:
    UserWarning: if there are such files; they are used.
  """
  ending = index.get('file_ending')
  others = [name for name in names if isinstance(ending, str) and not name.name.endswith(ending)]
  if others:
    files.note(
      f'{path}: "file_ending" is {ending!r}, but {len(others)} files end otherwise, first '
      f'{others[0]}; they are used, nnU-Net would not find them'
    )


def elsewhere(
  index: Mapping[str, Any], path: pathlib.Path
) -> dict[str, tuple[pathlib.Path, pathlib.Path, str]]:
  """Training cases that lie anywhere: case -> its CT, its label map and what is wrong with them.

  Args:
    index: content of `dataset.json`; `dataset`, case -> {"images": [CT, ...], "label": file}, paths
      that are absolute, begin at its folder or with an environment variable, as `$nnUNet_raw`.
    path: of it.

  Raises:
    SourceError: if `dataset` is no such table.
  """
  cases = {}
  table = index.get('dataset', {})
  if not isinstance(table, Mapping):
    raise SourceError(f'{path}: "dataset" must map cases to their "images" and "label"')
  for name, entry in table.items():
    images = entry.get('images') if isinstance(entry, Mapping) else None
    label = entry.get('label') if isinstance(entry, Mapping) else None
    if not isinstance(images, list) or not images or not isinstance(label, str):
      raise SourceError(f'{path}: dataset of {name}: expected "images": [file], "label": file')
    places = [os.path.expandvars(place) for place in (str(images[0]), label)]
    scan, labels = (path.parent / place for place in places)
    problems = (_problem(path.parent, place) for place in places)
    cases[name] = scan, labels, next(filter(None, problems), '')
  return cases


def _problem(folder: pathlib.Path, place: str) -> str:
  """What is wrong with a file of a dataset's folder, '' if nothing is."""
  path = folder / place
  if '$' in place and not os.path.lexists(path):  # the folder's own name may have one
    return f'{path}: no such file; set the environment variable that it names, as for nnU-Net'
  return inventory.look_at(path).problem
