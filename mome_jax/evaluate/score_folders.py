"""Scores folders of predicted masks against references, without a model."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import progress, remarks
from input_pipeline.anatomy import Template
from input_pipeline.ct import slicer_segments, volume
from input_pipeline.files import inventory
from input_pipeline.sources import absence, files
from mome_jax.errors import UserError, few
from mome_jax.evaluate import labelling, mask_folders, patients, score_files
from mome_jax.evaluate.mask_folders import MaskFolder, Masks, ScoreError


@dataclasses.dataclass(frozen=True)
class FolderScores:
  """What came of two folders.

  Attributes:
    rows: of `score_files.score`.
    failed: (case, reason) of what could not be scored: a reference without a prediction, a file
      that is damaged or lies elsewhere, a class that is not there.
    notes: what was left out, for people.
  """

  rows: list[dict[str, Any]]
  failed: list[tuple[str, str]]
  notes: list[str]


def score_folders(
  predictions: str | os.PathLike,
  references: str | os.PathLike,
  *,
  classes: Sequence[str] = (),
  dataset: str = '',
) -> FolderScores:
  """Scores every reference and its prediction of the same name, on the reference's grid.

  A folder holds one label map a case (nnU-Net, `NAME.nii.gz` or `NAME_seg.nii.gz`, `.nrrd`, `.mha`;
  of 3D Slicer `NAME.seg.nrrd`, which names its segments itself), whose values mean what its
  `dataset.json` says (a list of values is their union; the value of `ignore` is left out), else its
  legends `NAME_seg.json`, else `dataset.json` beside it, else, for predictions, what they mean in
  the references, else the class table, which is noted, and of which only classes are scored that a
  file holds. Values that are not declared are noted. Or it holds one folder a case with one mask a
  class (TotalSegmentator): `NAME/spleen.nii.gz` or, of nested folders,
  `NAME/segmentations/kidney_left.nii.gz`. A class without a reference mask is not scored in that
  case; nor is one that is not labelled there, by `missing_is` or `supervised` in the `dataset.json`
  of the references. Of a class that is `absent` there, the field of view cannot show it, the volume
  of its mask is told. An organ without its side in the references (kidney) is scored against both
  sides together. A channel in a name is passed over, where that makes a pair:
  `NAME_0000_seg.nii.gz`. What cannot be scored costs only itself: it is named, in the summary and
  the table too, and the exit code is 1.

  Args:
    predictions: folder.
    references: folder.
    classes: names to score, an organ without its side for both; all of the references' by default.
    dataset: what the rows call their source; by default the name of the folder of references,
      links followed.

  Raises:
    ScoreError, TextFileError, SourceError, FolderError: if folders or names do not fit.
  """
  folders = pathlib.Path(predictions), pathlib.Path(references)
  with remarks.collected() as lines:
    scores = _score_folders(*folders, classes, dataset or folders[1].resolve().name)
  return dataclasses.replace(scores, notes=list(dict.fromkeys([*scores.notes, *lines])))


def _score_folders(
  predictions: pathlib.Path, references: pathlib.Path, classes: Sequence[str], dataset: str
) -> FolderScores:
  declared = labelling.read(references)
  template = declared.template
  meaning = mask_folders.label_values(references, template)
  truth = mask_folders.read_folder(references, meaning, template)
  predicted = mask_folders.read_folder(
    predictions, mask_folders.label_values(predictions, template) or meaning, template
  )
  failed, notes = [*truth.failed, *predicted.failed], [*truth.notes, *predicted.notes]
  notes += _without_legend(predicted)
  pairs = _pairs(truth.masks, predicted.masks)
  lacks = _Lacks(declared)
  asked = _asked(classes, truth, template)
  known = _known(truth, asked, lacks)
  lacking = [
    case for case in truth.masks if case not in pairs and case not in dict(predicted.failed)
  ]
  failed += [(case, f'{predictions}: no prediction of this name') for case in lacking]
  if extra := sorted(predicted.masks.keys() - set(pairs.values())):
    notes.append(f'{predictions}: predictions without a reference: {", ".join(extra)}')
  # Most names of the class table are in no reference.
  needed = asked if truth.by_class_table else known
  _check_predicted(predictions, [predicted.masks[name] for name in pairs.values()], needed)
  rows: list[dict[str, Any]] = []
  undeclared: tuple[dict, dict] = {}, {}
  for case, name in progress.bar(pairs.items(), desc='score'):
    names = [name for name in truth.masks[case].names if name in known]
    parts = {side for noun in names for side in template.pairs().get(noun, ())}
    others = [n for n in predicted.masks[name].names if n not in (*names, *parts)]
    names += [n for n in others if lacks.out_of_view(case, n) and (n in asked or not asked)]
    masks = predicted.masks[name], truth.masks[case]
    scored, faults = _score_case(dataset, case, names, *masks, lacks)
    rows += scored
    failed += [(case, fault) for fault in faults]
    for held, stem, side in zip(undeclared, (name, case), masks, strict=True):
      if values := side.undeclared():
        held[stem] = side.declared_in, values
  for folder, held in zip((predictions, references), undeclared, strict=True):
    notes += mask_folders.undeclared_notes(folder, held)
  if by_table := [side for side in (truth, predicted) if side.by_class_table]:
    notes.append(mask_folders.class_table_note(by_table))
  if truth.by_class_table:
    rows = _of_held_classes(rows, asked)
    _check_numbers(truth, predicted, rows)
  whose = {(dataset, case): declared.patients.get(case, case) for case in truth.masks}
  named = patients.called(whose)
  rows = [row | {patients.FIELD: named.get((dataset, row['case']), '')} for row in rows]
  return FolderScores(rows, failed, [*notes, *lacks.notes(references, {r['class'] for r in rows})])


def _without_legend(predicted: MaskFolder) -> list[str]:
  """A note on label maps that are called as those of `predict`, and lack what those have."""
  bare: dict[str, pathlib.Path] = {}
  for masks in predicted.masks.values():
    place = pathlib.Path(masks.declared_in)
    if masks.path.name.endswith('_seg.nii.gz') and place.name == 'dataset.json':
      bare |= {masks.path.name: place} if place.parent != predicted.path else {}
  return [
    f'{predicted.path}: {few(bare)}: no NAME_seg.json there, so that values are taken for what '
    f'they mean in {place}; if predict wrote it, bring that along: its values are others'
    for place in [*bare.values()][:1]
  ]


def _check_numbers(truth: MaskFolder, predicted: MaskFolder, rows: Sequence[Mapping]) -> None:
  """ScoreError where values of references are a guess, and hold nothing of what is predicted."""
  is_empty = [row['false_positive_ml'] is not None for row in rows]
  if rows and all(is_empty) and not predicted.by_class_table:
    names = few(dict.fromkeys(row['class'] for row in rows))
    note = mask_folders.class_table_note([truth])
    raise ScoreError(f'{note}; as they are, none has a voxel of {names}')


def _of_held_classes(rows: list[dict[str, Any]], asked: Sequence[str]) -> list[dict[str, Any]]:
  """The rows of classes that are asked for, or that any file holds: the table names many more."""
  held = {row['class'] for row in rows if not math.isnan(row['dice'])} | set(asked)
  return [row for row in rows if row['class'] in held]


class _Lacks:
  """Which classes which references have, and what it means where one is not there."""

  def __init__(self, declared: labelling.Labelling):
    self._labelling = declared
    self.out_of_view = declared.out_of_view
    self.out_of_some_view = declared.out_of_some_view
    self._empty: dict[str, list[str]] = {}
    self._left_out: dict[str, list[str]] = {}

  def is_scored(self, case: str, name: str, occurs: bool) -> bool:
    """Whether a class is scored in a case; keeps account of those that are not."""
    if self.out_of_view(case, name) or self._labelling.labels(case, name, occurs=occurs):
      return True
    self._left_out.setdefault(name, []).append(case)
    return False

  def note_scored(self, case: str, name: str, occurs: bool) -> None:
    """Keeps account of a class that was scored in a case, and may not have been labelled there."""
    if not (occurs or self.out_of_view(case, name) or self._labelling.says(case)):
      self._empty.setdefault(name, []).append(case)

  def notes(self, references: pathlib.Path, scored: Collection[str]) -> list[str]:
    """Of what was not scored, and of what may have been scored wrongly."""
    lines = [
      f'{references}: {name!r} is not labelled in {len(cases)}, not scored there: {few(cases)}'
      for name, cases in self._left_out.items()
    ]
    return lines + [
      f'{references}: {name!r} is in no voxel of {len(cases)} references, and scored as absent '
      f'there: {few(cases)}; where it was only not labelled, say "missing_is": '
      f'"{absence.UNLABELLED}" or "supervised" in dataset.json, else "{absence.ABSENT}"'
      for name, cases in self._empty.items()
      if name in scored
    ]


def _nothing(like: volume.Volume) -> volume.Volume:
  """An empty mask on the same grid."""
  return volume.Volume(np.zeros(like.array.shape, bool), like.geometry)


def _asked(classes: Sequence[str], truth: MaskFolder, template: Template) -> list[str]:
  """The classes that are asked for: of an organ without its side both, where those are known."""
  known = {name for masks in truth.masks.values() for name in masks.names}
  asked: list[str] = []
  for name in (mask_folders.canonical(name, template) for name in classes):
    sides = template.pairs().get(name, ())
    asked += sides if sides and name not in known and known.issuperset(sides) else [name]
  return list(dict.fromkeys(asked))


def _known(truth: MaskFolder, classes: Sequence[str], lacks: _Lacks) -> list[str]:
  """The classes to score; ScoreError if one is asked for that no reference has."""
  known = list(dict.fromkeys(name for masks in truth.masks.values() for name in masks.names))
  unknown = [name for name in classes if name not in known and not lacks.out_of_some_view(name)]
  if unknown:
    told = ', '.join(map(repr, unknown))
    raise ScoreError(f'{truth.path}: no class {told}; there are {", ".join(sorted(known))}')
  return list(classes) or known


def _check_predicted(folder: pathlib.Path, masks: Sequence[Masks], names: Sequence[str]) -> None:
  """What no prediction at all has is a mistake in the names, not a failure of each case."""
  known = {name for case in masks for name in case.names}
  held = lambda name: any(case.holds(name) for case in masks)
  if lacking := [name for name in names if masks and not held(name)]:
    raise ScoreError(
      f'{folder}: no class {", ".join(map(repr, lacking))}; there are {", ".join(sorted(known))}. '
      'Leave it out with --classes, or declare the values in dataset.json'
    )


def _pairs(truths: Collection[str], predicted: Collection[str]) -> dict[str, str]:
  """Reference -> prediction: of the same name, or of the same name but for a channel."""
  pairs = {case: case for case in truths if case in predicted}
  names = [inventory.case_names(side) for side in (truths, predicted)]
  by_name = {names[1][stem]: stem for stem in predicted if stem not in pairs}
  for case in truths:
    if case not in pairs and (stem := by_name.get(names[0][case])):
      pairs[case] = stem
  return pairs


def _score_case(
  source: str, case: str, names: Sequence[str], predicted: Masks, truth: Masks, lacks: _Lacks
) -> tuple[list[dict[str, Any]], list[str]]:
  """The rows of a case, and what could not be scored in it."""
  rows, faults = [], []
  for name in names:
    try:
      reference = truth.read(name) if name in truth.names else None
      occurs = reference is not None and bool(reference.array.any())
      if not lacks.is_scored(case, name, occurs):
        continue
      if not predicted.holds(name):
        if truth.declared_in == mask_folders.CLASS_TABLE and not occurs:
          continue
        held = ', '.join(predicted.names)
        raise ScoreError(f'{predicted.path}: no class {name!r}; there are {held}')
      prediction = predicted.mask(name)
      # What is out of view needs no reference of its own.
      reference = _nothing(prediction) if reference is None else reference
      prediction, reference = _on_one_grid(predicted.path, prediction, truth.path, reference)
      ignored = truth.ignored and slicer_segments.embed(truth.ignored(), reference.geometry)
      scored = ~ignored.array if ignored else True
    except UserError as error:
      faults.append(str(error))
      continue
    absent = lacks.out_of_view(case, name)
    if absent and occurs:
      faults.append(f'{truth.path}: holds {name}, which "absent" declares out of view; correct it')
      continue
    mask, true = prediction.array & scored, reference.array & scored
    row = score_files.score(source, case, name, mask, true, reference.spacing, absent=absent)
    rows.append(row)
    lacks.note_scored(case, name, occurs)
  return rows, list(dict.fromkeys(faults))


def _on_one_grid(
  place: pathlib.Path, prediction: volume.Volume, other: pathlib.Path, reference: volume.Volume
) -> tuple[volume.Volume, volume.Volume]:
  """Masks of two files on one grid: those of 3D Slicer may be cut to where there are any."""
  cut = [slicer_segments.is_segmentation(path) for path in (place, other)]
  if all(cut):
    grid = slicer_segments.common(prediction.geometry, reference.geometry)
    if grid is None:
      raise ScoreError(
        f'{place}: its voxels are not those of {other}; export both on the grid of the scan'
      )
    return slicer_segments.embed(prediction, grid), slicer_segments.embed(reference, grid)
  if cut[0]:
    prediction = slicer_segments.embed(prediction, reference.geometry)
  if cut[1]:
    reference = slicer_segments.embed(reference, prediction.geometry)
  files.check_grid(place, prediction.geometry, other, reference.geometry)
  return prediction, reference
