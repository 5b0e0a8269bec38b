"""Scores folders of predicted masks against references, without a model."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import inventory, progress, text_files
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from input_pipeline.sources import files, nifti_folder
from mome_jax.errors import UserError
from mome_jax.evaluate import score_files

_SUFFIXES = ('_seg', '_masks')  # of what `predict` writes
_PROBABILITIES = '_probabilities'
_UNSCORED = ('background', 'ignore')
_NO_MASKS = ('text', 'picture')  # legends, tables and previews beside masks are nothing to tell of


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


@dataclasses.dataclass(frozen=True)
class Scores:
  """What came of two folders.

  Attributes:
    rows: of `score_files.score`.
    failed: (case, reason) of what could not be scored: a reference without a prediction, a file
      that is damaged or lies elsewhere, a class that is not there.
    notes: what was left out, for people.
  """

  rows: list[dict]
  failed: list[tuple[str, str]]
  notes: list[str]


def score_folders(
  predictions, references, *, classes: Sequence[str] = (), dataset: str = ''
) -> Scores:
  """Scores every reference and its prediction of the same name, on the reference's grid.

  A folder holds one label map a case (nnU-Net, `NAME.nii.gz` or `NAME_seg.nii.gz`), whose values
  mean what its `dataset.json` says (a list of values is their union; the value of `ignore` is left
  out), else its legends `NAME_seg.json`, else `dataset.json` beside it, else, for predictions, what
  they mean in the references, else the class template. Or it holds one folder a case with one mask
  a class (TotalSegmentator): `NAME/spleen.nii.gz`, `NAME/segmentations/kidney_left.nii.gz`. A class
  without a reference mask is not scored in that case. A channel in a name is passed over, where
  that makes a pair: `NAME_0000_seg.nii.gz`. What cannot be scored costs only itself: it is named,
  in the summary and the table too, and the exit code is 1.

  Args:
    predictions: folder.
    references: folder.
    classes: names to score; all of the references' by default.
    dataset: what the rows call their source; by default the name of the folder of references.

  Raises:
    ScoreError, TextFileError, SourceError: if folders or names do not fit.
  """
  predictions, references = pathlib.Path(predictions), pathlib.Path(references)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always', UserWarning)
    scores = _score_folders(predictions, references, classes, dataset or references.name)
  notes = dict.fromkeys([*scores.notes, *(str(warning.message) for warning in caught)])
  return dataclasses.replace(scores, notes=list(notes))


def _score_folders(
  predictions: pathlib.Path, references: pathlib.Path, classes: Sequence[str], dataset: str
) -> Scores:
  _labels.cache_clear()  # files may have changed since the last call
  meaning = _values(references)
  truths, failed, notes = find_masks(references, meaning)
  found, unusable, further = find_masks(predictions, _values(predictions) or meaning)
  failed, notes = [*failed, *unusable], [*notes, *further]
  pairs = _pairs(truths, found)
  known = _known(references, truths, [_canonical(name) for name in classes])
  lacking = [case for case in truths if case not in pairs and case not in dict(unusable)]
  failed += [(case, f'{predictions}: no prediction of this name') for case in lacking]
  if extra := sorted(found.keys() - set(pairs.values())):
    notes.append(f'{predictions}: predictions without a reference: {", ".join(extra)}')
  _check_predicted(predictions, [found[name] for name in pairs.values()], known)
  rows = []
  for case, name in progress.bar(pairs.items(), desc='score'):
    names = [name for name in truths[case].names if name in known]
    scored, faults = _score_case(dataset, case, names, found[name], truths[case])
    rows += scored
    failed += [(case, fault) for fault in faults]
  return Scores(rows, failed, notes)


def _known(references: pathlib.Path, truths: Mapping[str, Masks], classes: Sequence[str]):
  """The classes to score; ScoreError if one is asked for that no reference has."""
  known = list(dict.fromkeys(name for masks in truths.values() for name in masks.names))
  unknown = [name for name in classes if name not in known]
  if unknown:
    told = ', '.join(map(repr, unknown))
    raise ScoreError(f'{references}: no class {told}; there are {", ".join(sorted(known))}')
  return list(classes) or known


def _check_predicted(folder: pathlib.Path, found: Sequence[Masks], names: Sequence[str]) -> None:
  """What no prediction at all has is a mistake in the names, not a failure of each case."""
  there = {name for masks in found for name in masks.names}
  if lacking := [name for name in names if found and name not in there]:
    raise ScoreError(
      f'{folder}: no class {", ".join(map(repr, lacking))}; there are {", ".join(sorted(there))}. '
      'Leave it out with --classes, or declare the values in dataset.json'
    )


def _pairs(truths: Iterable[str], found: Iterable[str]) -> dict[str, str]:
  """Reference -> prediction: of the same name, or of the same name but for a channel."""
  pairs = {case: case for case in truths if case in found}
  names = [inventory.case_names(side) for side in (truths, found)]
  by_name = {names[1][stem]: stem for stem in found if stem not in pairs}
  for case in truths:
    if case not in pairs and (stem := by_name.get(names[0][case])):
      pairs[case] = stem
  return pairs


def _score_case(
  source: str, case: str, names: Sequence[str], found: Masks, truth: Masks
) -> tuple[list[dict], list[str]]:
  """The rows of a case, and what could not be scored in it."""
  rows, faults = [], []
  for name in names:
    if name not in found.names:
      faults.append(f'{found.path}: no class {name!r}; there are {", ".join(found.names)}')
      continue
    try:
      reference, prediction = truth.read(name), found.read(name)
      files.check_grid(found.path, prediction.geometry, truth.path, reference.geometry)
      scored = None if truth.ignored is None else ~truth.ignored().array
    except UserError as error:
      faults.append(str(error))
      continue
    pair = [prediction.array, reference.array]
    if scored is not None:
      pair = [mask & scored for mask in pair]
    rows.append(score_files.score(source, case, name, *pair, reference.spacing))
  return rows, list(dict.fromkeys(faults))


def find_masks(
  folder: pathlib.Path, meaning: Mapping[str, Sequence[int]] | None
) -> tuple[dict[str, Masks], list[tuple[str, str]], list[str]]:
  """The masks of a folder.

  Args:
    folder: of label maps, or of folders of masks.
    meaning: class -> values in label maps; None is the class template.

  Returns:
    Case -> masks; (case, reason) of cases that are there twice; and what was left out.

  Raises:
    ScoreError: if the folder is missing or holds neither.
  """
  if not folder.is_dir():
    raise ScoreError(f'{folder}: no such folder')
  held = inventory.look(folder, ('nifti',), deep=False)
  maps = list(_label_maps(held, meaning))
  # What `predict --masks` wrote beside a label map is the same once more.
  names = {case for case, _ in maps}
  maps += [(case, masks) for case, masks in _mask_folders(held) if case not in names]
  if not maps:
    raise ScoreError(
      f'{folder}: no NAME.nii.gz with labels and no NAME/CLASS.nii.gz with masks directly in it'
    )
  found, twice = {}, {}
  for case, masks in maps:
    if found.setdefault(case, masks) is not masks:
      twice[case] = f'{masks.path} and {found[case].path.name} are both of this case; keep one'
  for case in twice:
    del found[case]
  left_out = [file for file in held.left_out if file.reason not in _NO_MASKS]
  notes = [f'{folder}: left out: {phrase}' for phrase in inventory.phrases(left_out)]
  return found, list(twice.items()), notes


def _label_maps(held: inventory.Inventory, meaning) -> Iterator[tuple[str, Masks]]:
  if meaning is None:
    table = TEMPLATE.code_table(TEMPLATE.names())
    meaning = {name: np.flatnonzero(table[:, k]) for k, name in enumerate(TEMPLATE.names())}
  names = tuple(name for name in meaning if name not in _UNSCORED)
  for file in (*held.used, *held.failed):
    read = functools.partial(_read_label, file, meaning)
    ignored = functools.partial(read, 'ignore') if 'ignore' in meaning else None
    yield _case(inventory.stem(file.name)), Masks(file.path, names, read, ignored)


@functools.lru_cache(2)
def _labels(path: pathlib.Path) -> volume.Volume | UserError:
  """A label map, or why there is none.

  A prediction and its reference stay in memory while their classes are scored; a damaged one is
  tried once and not for each class.
  """
  try:
    return volume.read_labels(path)
  except UserError as error:
    return error


def _read_label(file: inventory.File, meaning: Mapping[str, Sequence[int]], name: str):
  if file.problem:
    raise ScoreError(file.problem)
  labels = _labels(file.path)
  if isinstance(labels, UserError):
    raise labels
  return volume.Volume(np.isin(labels.array, meaning[name]), labels.geometry)


def _mask_folders(held: inventory.Inventory) -> Iterator[tuple[str, Masks]]:
  for folder in held.folders:
    if folder.name.endswith(_PROBABILITIES):
      continue
    inner = folder / 'segmentations'
    masks = inventory.look(inner if inner.is_dir() else folder, ('nifti',), deep=False)
    by_class = {_canonical(inventory.stem(f.path.name)): f for f in (*masks.used, *masks.failed)}
    if by_class:
      yield (
        _case(folder.name),
        Masks(folder, tuple(by_class), functools.partial(_read_mask, by_class)),
      )


def _read_mask(by_class: Mapping[str, inventory.File], name: str) -> volume.Volume:
  file = by_class[name]
  if file.problem:
    raise ScoreError(file.problem)
  labels = volume.read_labels(file.path)
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
  damaged = None
  for path in sorted(folder.glob('*_seg.json')):
    try:
      values = {entry['name']: entry['label'] for entry in text_files.read_json(path)['labels']}
    except (OSError, UserError, KeyError, TypeError) as error:
      damaged = ScoreError(f'{path}: no legend of labels ({error}); predict anew')
      warnings.warn(str(damaged), stacklevel=2)  # those of other cases say the same
      continue
    for name in values:
      inner = [n for n in values if TEMPLATE.contains(name, n)]
      own = sorted(values[n] for n in (name, *inner))
      if meaning.setdefault(name, own) != own:
        raise ScoreError(
          f'{path}: {name!r} means another label than in other legends; predict anew'
        )
  if damaged and not meaning:
    raise damaged
  return meaning or None


def _declared(path: pathlib.Path) -> dict[str, list[int]]:
  content = text_files.read_json(path)
  declared = content.get('labels') if isinstance(content, Mapping) else None
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
