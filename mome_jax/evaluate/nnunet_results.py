"""Results of `mome_jax.predict` as nnU-Net would have written them, for its evaluation."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import Template
from input_pipeline.ct import itk_image, volume
from input_pipeline.files import inventory
from input_pipeline.sources import files, nifti_folder
from mome_jax.errors import UserError, few, writing
from mome_jax.evaluate import mask_folders
from mome_jax.evaluate.mask_folders import Masks, ScoreError

_UNSET = ('background', 'ignore')
_ENDINGS = ('.nii.gz', '.nii', '.nrrd', '.mha')


def write(
  results: str | os.PathLike, dataset: str | os.PathLike, output: str | os.PathLike
) -> tuple[list[pathlib.Path], list[str]]:
  """Writes results as nnU-Net names and numbers them: OUTPUT/CASE.ending, ready to be evaluated.

  The labels of the dataset.json of an nnU-Net dataset decide on the values: masks are painted in
  their order, a structure after what contains it; of region labels in the order of
  `regions_class_order`. A label without its side (kidney) is both sides. `file_ending` decides on
  the format (.nrrd and .mha with the extra itk). A copy of dataset.json goes along. Then:
  nnUNetv2_evaluate_folder labelsTs OUTPUT -djfile OUTPUT/dataset.json -pfile plans.json, or
  `mome score`.

  Args:
    results: output folder of `mome_jax.predict`, or other masks that `score` reads.
    dataset: `dataset.json`.
    output: folder, created.

  Returns:
    What was written, and notes: labels that no case has, values of the results that mean nothing,
    files of other cases that are in the output.

  Raises:
    ScoreError, TextFileError, SourceError, VolumeError: if something does not fit, or a case lacks
      a class of others: an empty mask would count as not found. What was written before is whole.
  """
  path, folder = pathlib.Path(dataset), pathlib.Path(output)
  if path.is_dir() or not os.path.lexists(path):
    raise ScoreError(f'{path}: no such file; give the dataset.json of a dataset')
  index = mask_folders.declaration(path)
  template = files.template_of(path.parent, index)
  values = _values(path, index, template)
  ending = index.get('file_ending', '.nii.gz')
  if ending not in _ENDINGS:
    raise ScoreError(f'{path}: "file_ending" is {ending!r}; expected {", ".join(_ENDINGS)}')
  place = pathlib.Path(results)
  held = _held(place, template)
  names = inventory.case_names(held.masks)
  lacking = [name for name in values if not any(m.holds(name) for m in held.masks.values())]
  if len(lacking) == len(values):
    raise ScoreError(f'{place}: none of the labels of {path}; it has {", ".join(values)}')
  values = {name: value for name, value in values.items() if name not in lacking}
  for masks in held.masks.values():
    if absent := [repr(name) for name in values if not masks.holds(name)]:
      raise ScoreError(
        f'{masks.path}: no class {", ".join(absent)}, which other cases have; predict it there too'
      )
  with writing(folder, ScoreError):
    folder.mkdir(parents=True, exist_ok=True)
  written, undeclared = [], {}
  for case, masks in held.masks.items():
    file = folder / f'{names[case]}{ending}'
    _save(file, _paint(masks, values))
    written.append(file)
    if unknown := masks.undeclared():
      undeclared[case] = masks.declared_in, unknown
  copy = folder / 'dataset.json'
  if not copy.exists() or not copy.samefile(path):
    shutil.copyfile(path, copy)
  notes = [f'{path}: {name!r} is not in the results, and so in no file' for name in lacking]
  notes += mask_folders.undeclared_notes(place, undeclared)
  return written, held.notes + notes + _of_another_run(folder, ending, written)


def _of_another_run(
  folder: pathlib.Path, ending: str, written: Sequence[pathlib.Path]
) -> list[str]:
  """A note on the cases in a folder that were not written now, where there are any."""
  others = {file.name for file in folder.glob(f'*{ending}')} - {file.name for file in written}
  note = (
    f'{folder}: holds {few(sorted(others))} besides, which would be scored along; remove what is '
    'of another run'
  )
  return [note] if others else []


def _held(place: pathlib.Path, template: Template) -> mask_folders.MaskFolder:
  """The masks of a folder; ScoreError where one of its cases cannot be used."""
  held = mask_folders.read_folder(place, mask_folders.label_values(place, template), template)
  if held.failed:
    case, reason = held.failed[0]
    raise ScoreError(f'{case}: {reason}')
  notes = [mask_folders.class_table_note([held])] if held.by_class_table else []
  return dataclasses.replace(held, notes=held.notes + notes)


def _values(path: pathlib.Path, index: Mapping[str, Any], template: Template) -> dict[str, int]:
  """Class -> value in the order of painting, from the content of a dataset.json."""
  named = nifti_folder.by_name(index['labels'], path)
  regions = {name: held for name, held in named.items() if name not in _UNSET}
  if empty := [name for name, held in regions.items() if not held]:
    raise ScoreError(f'{path}: labels without a value: {", ".join(empty)}; give each one')
  if any(len(held) > 1 for held in regions.values()):
    values = _of_regions(path, list(regions), index.get('regions_class_order'))
  else:
    values = {name: held[0] for name, held in regions.items()}
  wrong = {name: value for name, value in values.items() if not 0 <= value <= 255}
  if wrong:
    raise ScoreError(f'{path}: labels {wrong} are outside 0..255')
  by_class = {mask_folders.canonical(name, template): v for name, v in values.items()}
  if len(by_class) < len(values):
    raise ScoreError(f'{path}: two of the labels {", ".join(values)} are one class; rename one')
  if any(len(held) > 1 for held in regions.values()):
    return by_class
  within = lambda inner, outer: mask_folders.contains(outer, inner, template)
  around = {name: sum(within(name, one) for one in by_class) for name in by_class}
  inner_last = sorted(by_class, key=around.__getitem__)
  return {name: by_class[name] for name in inner_last}


def _of_regions(path: pathlib.Path, names: Sequence[str], order: Any) -> dict[str, int]:
  """Region -> the value that it is painted with, as nnU-Net does."""
  is_whole = lambda value: isinstance(value, int | float) and float(value).is_integer()
  if not isinstance(order, list) or len(order) != len(names) or not all(map(is_whole, order)):
    raise ScoreError(
      f'{path}: "regions_class_order" is {order!r}; expected a whole number for each of '
      f'{", ".join(names)}'
    )
  return dict(zip(names, map(int, order), strict=True))


def _save(file: pathlib.Path, labels: volume.Volume) -> None:
  with writing(file.parent, ScoreError):
    if itk_image.is_itk(file):
      itk_image.write(file, labels.array, labels.geometry)
    else:
      volume.write_nifti(file, labels.array, labels.geometry, np.uint8)


def _paint(masks: Masks, values: Mapping[str, int]) -> volume.Volume:
  """One label map (D, H, W) uint8 of the masks of a case."""
  painted: np.ndarray | None = None
  for name, value in values.items():
    mask = masks.mask(name)
    if painted is None:
      painted, geometry = np.zeros(mask.array.shape, np.uint8), mask.geometry
    if mask.array.shape != painted.shape:
      raise UserError(f'{masks.path}: the mask of {name!r} is on another grid; predict anew')
    painted[mask.array] = value
  assert painted is not None  # there are values
  return volume.Volume(painted, geometry)
