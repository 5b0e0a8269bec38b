"""Contours of a radiotherapy department: a folder of patients, each a CT series and RTSTRUCTs.

A DICOM SEG counts as a structure set, whose ROIs are its segments; one whose label says no side has
that of its code: 'Lung left', and `rois` and `ignored` may name it with the side or without.

  FOLDER/PATIENT/...      DICOM at any depth, or FOLDER/PATIENT.zip
  FOLDER/dataset.json     optional

Of several structure sets of a scan those count together that have other classes; of a class that
two have, the newer one. An ROI stands for a class by its name, as a prompt does
('Parotid_L', 'SpinalCord'), or as `dataset.json` says; its fields are all optional:

  rois           class -> names of ROIs, with the wildcards *, ? and [abc]: "Parotid_L*"
  ignored        names of ROIs that stand for nothing and are not told of
  new_classes    list of objects: name, prompt, synonyms, parent, ... as `anatomy.Template.extend`
  partial        classes that are contoured over a range of slices; beyond it they are unknown
  structure_set  label or file of those to take, with wildcards; with its folders where one has a /
  missing_is     'unlabelled' (the default): a class without contours is unknown in that patient;
                 'absent': it was looked for in every patient, and is not there
  supervised     patient -> classes that were looked for in it, or one list for all; goes before
                 `missing_is`
  absent         patient -> classes that the scan's field of view cannot show, or one list for all:
                 background, which is trained and scored
  patients       patient -> name, of folders that are of one patient; by default those are whose
                 PatientID is the same
  splits         {"validation": [patients], "test": [patients]}; by default about a fifth is held
                 out, each patient drawn by name
  licence, citation
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import Template
from input_pipeline.ct import dicom, structure_set, volume
from input_pipeline.errors import UserError
from input_pipeline.files import inventory, text_files
from input_pipeline.sources import (
  absence,
  dataset_fields,
  field_of_view,
  files,
  labels,
  patient_ids,
  roi_names,
  rtstruct_patients,
  split_lists,
)
from input_pipeline.sources.base import Case, Scan, Source, SourceError, loader, restrict_table
from input_pipeline.sources.roi_names import RoiNames
from input_pipeline.sources.rtstruct_patients import Patient

_VALIDATION_SHARE = 0.2


def rtstruct_folder_cases(manual_dir: str | None) -> list[Case]:
  """The cases of a folder; see the head of this file.

  Raises:
    SourceError: if there is no patient, or `dataset.json` contradicts itself or the template.
    TextFileError: if `dataset.json` cannot be read.

  Warns:
    UserWarning: of ROIs that stand for no class, of structure sets that are not taken, and of files
      beside the patients.
  """
  folder, index = _open(manual_dir)
  template = files.template_of(folder, index)
  place = folder / 'dataset.json'
  try:
    names = roi_names.make(index.get('rois', {}), index.get('ignored', ()), template)
  except UserError as error:
    raise SourceError(f'{place}: {error}') from error
  try:
    listed = _classes(index.get('partial', ()), template)
  except UserError as error:
    raise SourceError(f'{place}: partial: {error}') from error
  paths = rtstruct_patients.places(folder)
  patients = {name: rtstruct_patients.read(path, names, index) for name, path in paths.items()}
  _tell(patients, names)
  everywhere = {noun for patient in patients.values() for noun in patient.classes()}
  partial = _sides(listed, template)
  if idle := [name for name in partial if name not in _sides(everywhere, template)]:
    files.note(f'{place}: partial: nobody has contours of {", ".join(idle)}')
  resolve = functools.partial(_class, template=template)
  absent = field_of_view.read(index, place, patients, resolve, template)
  looked_for = _looked_for(place, index, patients, everywhere, template)
  for name, classes in absent.items():
    contoured = sorted(patients[name].classes())
    looked_for[name] = tuple(field_of_view.labelled(looked_for[name], classes, template, place))
    if wrong := [noun for noun in contoured if classes.issuperset(_sides([noun], template))]:
      raise SourceError(
        f'{place}: {name} has contours of {", ".join(wrong)}, which "absent" declares outside its '
        'field of view; correct one of the two'
      )
  same = _same(place, index, patients)
  splits, drawn = _splits(place, index, patients, same)
  cases = (
    _case(name, patient, splits[name], looked_for[name], partial, template, drawn)
    for name, patient in patients.items()
  )
  return [
    dataclasses.replace(
      field_of_view.declare(case, absent.get(case.name, ()), template),
      patient=same.get(case.name, ''),
    )
    for case in cases
  ]


def _open(manual_dir: str | None) -> tuple[pathlib.Path, dict]:
  folder = files.folder_of('rtstruct_folder', manual_dir, 'a folder or .zip of DICOM a patient')
  path = folder / 'dataset.json'
  if not os.path.lexists(path):
    return folder, {}
  try:
    index = text_files.read_json(path)
  except OSError as error:
    raise SourceError(inventory.unreadable(path, error)) from error
  if not isinstance(index, dict):
    raise SourceError(f'{path}: expected an object, as {{"rois": {{"left parotid": "PAR L"}}}}')
  dataset_fields.check_contours(index, path)
  absence.reads(index, path)
  return folder, index


def _same(place: pathlib.Path, index: dict, patients: Mapping[str, Patient]) -> dict[str, str]:
  """Name -> patient, of those with several folders; who is told by PatientID has the first's name.

  What `dataset.json` says goes before PatientID.
  """
  if patient_ids.FIELD in index:
    return patient_ids.read(index, place, patients)
  ids = {name: patient.patient_id for name, patient in patients.items() if patient.patient_id}
  if not ids:
    patient_ids.tell(index, place, patients)
  # A folder without a scan is no patient whose ID could differ.
  known = sum(bool(patient.patient_id) or not patient.problem for patient in patients.values())
  return patient_ids.of_headers(ids, known, 'rtstruct_folder')


def _tell(patients: Mapping[str, Patient], names: RoiNames) -> None:
  """Notes the ROIs that stand for no class, and classes that several ROIs stand for."""
  unknown: collections.Counter = collections.Counter()
  for patient in patients.values():
    several = collections.defaultdict(list)
    for structures, meanings in zip(patient.structures, patient.meanings, strict=True):
      unknown.update(
        roi
        for roi in set(structures.heights) - set(meanings)
        if not names.is_ignored(roi, structures.written.get(roi, ''))
      )
      for roi, noun in meanings.items():
        several[noun].append(roi)
    for noun, rois in several.items():
      if len(rois) > 1:
        files.note(f'{patient.path}: {noun} is {" and ".join(rois)} together')
  if unknown:
    told = ', '.join(f'{roi} ({count})' for roi, count in sorted(unknown.items()))
    files.note(f'rtstruct_folder: ROIs that stand for no class, with patients: {told}')


def _classes(names: Any, template: Template) -> tuple[str, ...]:
  """Classes and pairs of a list; RoiNameError if it is none, or one is unknown."""
  if not text_files.are_texts(names):
    raise roi_names.RoiNameError(f'{names!r} is no list of classes')
  return tuple(roi_names.make({name: [] for name in names}, (), template).patterns)


def _class(name: str, template: Template) -> str:
  """The class or pair of a name; RoiNameError if there is none."""
  return _classes([name], template)[0]


def _sides(nouns: Iterable[str], template: Template) -> tuple[str, ...]:
  """Classes; of pairs, both sides."""
  return labels.classes_of(dict(enumerate(nouns)), template)


def _looked_for(
  place: pathlib.Path,
  index: dict,
  patients: Mapping[str, Patient],
  everywhere: set[str],
  template: Template,
) -> dict[str, tuple[str, ...]]:
  """Patient -> classes and pairs that are known in it."""
  given = index.get('supervised', {})
  if isinstance(given, list):
    given = dict.fromkeys(patients, given)
  if not isinstance(given, dict):
    raise SourceError(f'{place}: "supervised" must map patients to lists of classes')
  faults = [
    f'supervised names {name!r}, who is not there' for name in given if name not in patients
  ]
  known = {}
  for name, patient in patients.items():
    contoured = patient.classes()
    known[name] = tuple(everywhere if absence.reads(index, place) == absence.ABSENT else contoured)
    if name in given:
      try:
        known[name] = _classes(given[name], template)
      except UserError as error:
        faults.append(f'supervised of {name}: {error}')
  if faults:
    raise SourceError(f'{place}: {"; ".join(faults)}')
  return known


def _splits(
  place: pathlib.Path,
  index: dict,
  patients: Mapping[str, Patient],
  same: Mapping[str, str],
) -> tuple[dict[str, str], bool]:
  """Patient -> split, and whether they are drawn."""
  given, unknown, faults = split_lists.read(index, place, patients)
  faults += [f'splits names {name!r}, who is not there' for name in unknown]
  if faults:
    raise SourceError(f'{place}: {"; ".join(faults)}')
  splits = dict.fromkeys(patients, 'train') | given
  if not given:
    held = patient_ids.hold_out(patients, same, _VALIDATION_SHARE)
    splits |= dict.fromkeys(held, 'validation')
  patient_ids.check(splits, same, place)
  return splits, not given


def _case(
  name: str,
  patient: Patient,
  split: str,
  looked_for: Sequence[str],
  partial: Sequence[str],
  template: Template,
  drawn: bool,
) -> Case:
  if patient.problem:
    load = functools.partial(files.fail, patient.problem)
    return Case('rtstruct_folder', name, split, (), load, drawn=drawn)
  supervised = _sides(looked_for, template)
  sides = {noun: template.pairs().get(noun, (noun,)) for noun in patient.classes()}
  # What lies in a labelled organ is part of it, and would else be a hole.
  around = {
    noun: {*names, *(outer for name in names for outer in template.ancestors(name))}
    for noun, names in sides.items()
  }
  meanings, heights = {}, collections.defaultdict(list)
  for structures, of_set in zip(patient.structures, patient.meanings, strict=True):
    known = {roi: noun for roi, noun in of_set.items() if around[noun] & {*supervised}}
    meanings[structures.name] = known
    for roi, noun in known.items():
      for side in sides[noun]:
        heights[side].append(structures.heights[roi])
  nouns = [noun for of_set in meanings.values() for noun in of_set.values()]
  some = () if set(_sides(nouns, template)) <= {*supervised} else (supervised,)
  newest, *others = meanings.items()
  load = functools.partial(_load, patient.path, patient.uid, *newest, template, *some)
  if others:  # else it is as it ever was: what is prepared of such a patient is not made again
    load = functools.partial(load, further=dict(others))
  ranges: dict[str, tuple[float, float]] = {}
  for noun in (name for name in partial if name in supervised and name in heights):
    if not np.isfinite(patient.step):
      problem = (
        f'{patient.path}: {noun} is contoured in a range of axial slices, and those of the series '
        'are not axial; take the class out of "partial" and of this patient\'s labels'
      )
      load = functools.partial(files.fail, problem)
      return Case('rtstruct_folder', name, split, (), load, drawn=drawn)
    low, high = min(low for low, _ in heights[noun]), max(high for _, high in heights[noun])
    span = (low - patient.lowest - patient.step / 2, high - patient.lowest + patient.step / 2)
    ranges[noun] = (span[0] * patient.shear, span[1] * patient.shear)  # along the grid's axis
  return Case('rtstruct_folder', name, split, supervised, load, ranges, drawn)


@loader('rtstruct_folder')
def _load(
  path: pathlib.Path,
  uid: str,
  name: str,
  meanings: Mapping[str, str],
  template: Template,
  labelled: Sequence[str] | None = None,
  further: Mapping[str, Mapping[str, str]] | None = None,
) -> Scan:
  """Reads a series and the ROIs of structure sets.

  Args:
    path: folder or zip archive.
    uid: SeriesInstanceUID.
    name: file of the newest structure set inside.
    meanings: its ROI -> class or pair.
    template: of the classes.
    labelled: of the classes that the ROIs tell, those that are known in the case; all by default.
    further: file of each other structure set -> ROI -> class or pair.

  Raises:
    SourceError: if an ROI has no contour in the scan.
    VolumeError: as `dicom.read_series` and `structure_set.read_masks`.
  """
  series = dicom.read_series(path, series=uid)
  geometry = series.volume.geometry
  masks: dict[str, np.ndarray] = {}
  sets = {name: meanings, **(further or {})}
  for file, of_set in sets.items():
    read = structure_set.read_masks(path, file, geometry, list(of_set))
    if lost := [roi for roi in of_set if roi not in read]:
      raise SourceError(f'{path}/{file}: no closed contour of {", ".join(lost)} lies in the scan')
    masks |= read
  place = f'{path}/{" and ".join(sets)}'
  together = {roi: noun for of_set in sets.values() for roi, noun in of_set.items()}
  values, nouns = compose(place, masks, together, geometry.shape, template)
  codes = labels.convert(
    volume.to_canonical(values, geometry.affine).array,
    dict(enumerate(nouns, 1)),
    spacing=series.volume.spacing,
    name=place,
    image=series.volume.array,
    template=template,
  )
  if labelled is not None:
    codes = restrict_table(labelled, template)[codes]
  return Scan(series.volume.array, codes, geometry)


def compose(
  place: str,
  masks: Mapping[str, np.ndarray],
  meanings: Mapping[str, str],
  shape: Sequence[int],
  template: Template,
) -> tuple[np.ndarray, list[str]]:
  """Masks that may overlap as one label map.

  What lies in an organ is painted over it; of two structures that overlap otherwise the smaller one
  has the voxels.

  Args:
    place: for messages.
    masks: ROI -> mask.
    meanings: ROI -> class or pair.
    shape: of the masks.
    template: of the classes.

  Returns:
    Label map, uint8, and the class of its values from 1 on.

  Warns:
    UserWarning: of structures that overlap and do not contain each other.
  """
  together: dict[str, np.ndarray] = {}
  for roi, mask in masks.items():
    noun = meanings[roi]
    together[noun] = together[noun] | mask if noun in together else mask
  first = {noun: template.pairs().get(noun, (noun,))[0] for noun in together}
  around = {noun: set(template.ancestors(name)) for noun, name in first.items()}
  order = sorted(together, key=lambda noun: (len(around[noun]), -together[noun].sum(), noun))
  values = np.zeros(shape, np.uint8)
  for value, noun in enumerate(order, 1):
    under = np.bincount(values[together[noun]], minlength=value)
    for k, other in enumerate(order[: value - 1], 1):
      if under[k] and first[other] not in around[noun]:
        files.note(f'{place}: {noun} has {under[k]} voxels of {other} too, which it keeps')
    values[together[noun]] = value
  return values, order


RTSTRUCT_FOLDER = Source(
  name='rtstruct_folder',
  description='Your own planning CTs: a DICOM series with RT Structure Sets for each patient.',
  licence='as the folder says',
  citation='',
  cases=rtstruct_folder_cases,
  template=lambda manual_dir: files.template_of(*_open(manual_dir)),
  terms=lambda manual_dir: files.terms_of(*_open(manual_dir)),
)
