"""Scores folders of predicted masks against references, without a model."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tqdm

from input_pipeline import text_files, volume
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.sources import files, nifti_folder
from mome_jax import results
from mome_jax.errors import UserError

_SUFFIXES = ('_seg', '_masks')  # of what `predict` writes
_UNSCORED = ('background', 'ignore')


class ScoreError(UserError):
  """Folders that cannot be scored; the message names the folder or file and the fix."""


@dataclasses.dataclass(frozen=True)
class Masks:
  """The masks of one case.

  Attributes:
    path: of the label map, or of the folder of masks.
    names: its classes.
    read: class name -> mask, a Volume of bool.
    ignored: () -> mask of the voxels that are not scored; or None.
  """

  path: pathlib.Path
  names: tuple[str, ...]
  read: Callable[[str], volume.Volume]
  ignored: Callable[[], volume.Volume] | None = None


def score_folders(
  predictions, references, *, classes: Sequence[str] = (), dataset: str = ''
) -> list[dict]:
  """Scores every reference and its prediction of the same name, on the reference's grid.

  A folder holds one label map a case (nnU-Net, `NAME.nii.gz` or `NAME_seg.nii.gz`), whose values
  mean what its `dataset.json` says (a list of values is their union; the value of `ignore` is left
  out), else its legends `NAME_seg.json`, else `dataset.json` beside it, else, for predictions, what
  they mean in the references, else the class template. Or it holds one folder a case with one mask
  a class (TotalSegmentator): `NAME/spleen.nii.gz`, `NAME/segmentations/kidney_left.nii.gz`. A class
  without a reference mask is not scored in that case.

  Args:
    predictions: folder.
    references: folder.
    classes: names to score; all of the references' by default.
    dataset: what the rows call their source; by default the name of the folder of references.

  Returns:
    Rows of `results.score`.

  Raises:
    ScoreError, VolumeError, SourceError: if folders, grids or names do not fit.
  """
  predictions, references = pathlib.Path(predictions), pathlib.Path(references)
  _labels.cache_clear()  # files may have changed since the last call
  meaning = _values(references)
  truths = find_masks(references, meaning)
  found = find_masks(predictions, _values(predictions) or meaning)
  missing = [case for case in truths if case not in found]
  if missing:
    raise ScoreError(
      f'{predictions}: {len(missing)} of {len(truths)} references have no prediction, such as '
      f'{missing[0]}; predict them, or move their references away'
    )
  extra = sorted(found.keys() - truths.keys())
  if extra:
    print(
      f'note: {len(extra)} predictions without a reference, such as {extra[0]}', file=sys.stderr
    )
  classes = [_canonical(name) for name in classes]
  known = {name for masks in truths.values() for name in masks.names}
  unknown = [name for name in classes if name not in known]
  if unknown:
    raise ScoreError(f'{references}: no class {unknown[0]!r}; there are {", ".join(sorted(known))}')
  rows = []
  for case, truth in tqdm.tqdm(truths.items(), desc='score'):
    names = [name for name in truth.names if not classes or name in classes]
    rows += _score_case(dataset or references.name, case, names, found[case], truth)
  return rows


def _score_case(source: str, case: str, names: Sequence[str], found: Masks, truth: Masks):
  rows = []
  for name in names:
    if name not in found.names:
      raise ScoreError(
        f'{found.path}: no class {name!r}; there are {", ".join(found.names)}. Leave it out with '
        '--classes, or declare the values in dataset.json'
      )
    reference, prediction = truth.read(name), found.read(name)
    files.check_grid(found.path, prediction.geometry, truth.path, reference.geometry)
    pair = [prediction.array, reference.array]
    if truth.ignored is not None:
      scored = ~truth.ignored().array
      pair = [mask & scored for mask in pair]
    rows.append(results.score(source, case, name, *pair, reference.spacing))
  return rows


def find_masks(
  folder: pathlib.Path, meaning: Mapping[str, Sequence[int]] | None
) -> dict[str, Masks]:
  """The masks of a folder by case.

  Args:
    folder: of label maps, or of folders of masks.
    meaning: class -> values in label maps; None is the class template.

  Raises:
    ScoreError: if it holds neither, or two of the same case.
  """
  if not folder.is_dir():
    raise ScoreError(f'{folder}: no such folder')
  found = {}
  # What `predict --masks` wrote beside a label map is the same once more.
  for case, masks in tuple(_label_maps(folder, meaning)) or _mask_folders(folder):
    if case in found:
      raise ScoreError(
        f'{masks.path} and {found[case].path.name} are both of case {case}; keep one'
      )
    found[case] = masks
  if not found:
    raise ScoreError(
      f'{folder}: no NAME.nii.gz with labels and no NAME/CLASS.nii.gz with masks directly in it'
    )
  return found


def _label_maps(folder: pathlib.Path, meaning) -> Iterator[tuple[str, Masks]]:
  if meaning is None:
    table = TEMPLATE.code_table(TEMPLATE.names())
    meaning = {name: np.flatnonzero(table[:, k]) for k, name in enumerate(TEMPLATE.names())}
  names = tuple(name for name in meaning if name not in _UNSCORED)
  for path in files.nifti_files(folder):
    read = functools.partial(_read_label, path, meaning)
    ignored = functools.partial(read, 'ignore') if 'ignore' in meaning else None
    yield _case(volume.stem(path)), Masks(path, names, read, ignored)


# A prediction and its reference stay in memory while their classes are scored.
_labels = functools.lru_cache(2)(volume.read_labels)


def _read_label(path: pathlib.Path, meaning: Mapping[str, Sequence[int]], name: str):
  labels = _labels(path)
  return volume.Volume(np.isin(labels.array, meaning[name]), labels.geometry)


def _mask_folders(folder: pathlib.Path) -> Iterator[tuple[str, Masks]]:
  for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
    masks = files.nifti_files(inner / 'segmentations') or files.nifti_files(inner)
    paths = {_canonical(volume.stem(path)): path for path in masks}
    if paths:
      yield _case(inner.name), Masks(inner, tuple(paths), functools.partial(_read_mask, paths))


def _read_mask(paths: Mapping[str, pathlib.Path], name: str) -> volume.Volume:
  labels = volume.read_labels(paths[name])
  return volume.Volume(labels.array > 0, labels.geometry)


def _values(folder: pathlib.Path) -> dict[str, list[int]] | None:
  """Class -> values, from what lies in a folder or beside it; None where nothing says."""
  own, beside = folder / 'dataset.json', folder.parent / 'dataset.json'
  if own.is_file():
    return _declared(own)
  return _legends(folder) or (_declared(beside) if beside.is_file() else None)


def _legends(folder: pathlib.Path) -> dict[str, list[int]] | None:
  """Class -> values, from the legends of `predict`; an organ includes its tumours."""
  meaning: dict[str, list[int]] = {}
  for path in sorted(folder.glob('*_seg.json')):
    values = {entry['name']: entry['label'] for entry in text_files.read_json(path)['labels']}
    for name in values:
      inner = [n for n in values if TEMPLATE.contains(name, n)]
      own = sorted(values[n] for n in (name, *inner))
      if meaning.setdefault(name, own) != own:
        raise ScoreError(
          f'{path}: {name!r} means another label than in other legends; predict anew'
        )
  return meaning or None


def _declared(path: pathlib.Path) -> dict[str, list[int]]:
  declared = text_files.read_json(path).get('labels')
  if not isinstance(declared, Mapping):
    raise ScoreError(f'{path}: no "labels"; it must hold an object of name -> value')
  named = nifti_folder.by_name(declared, path)
  return {_canonical(name): values for name, values in named.items()}


def _case(stem: str) -> str:
  for suffix in _SUFFIXES:
    stem = stem.removesuffix(suffix)
  return stem


def _canonical(name: str) -> str:
  """The template's name where one is meant, as in kidney_left; else lower case with spaces."""
  words = name.replace('_', ' ').casefold().split()
  turned = [words[-1], *words[:-1]] if words[-1:] in (['left'], ['right']) else words
  for candidate in (' '.join(words), ' '.join(turned)):
    if structure := TEMPLATE.find(candidate):
      return structure.name
  return ' '.join(words)
