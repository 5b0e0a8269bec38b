"""A patient of `rtstruct_folder`: which series and structure sets, and what ROIs stand for."""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import dicom, dicom_series, structure_set
from input_pipeline.errors import UserError
from input_pipeline.files import inventory
from input_pipeline.sources import files, labels, roi_names
from input_pipeline.sources.base import SourceError
from input_pipeline.sources.roi_names import RoiNames


@dataclasses.dataclass(frozen=True)
class Patient:
  """A patient's scan and structure sets; `problem` is why they cannot be used.

  Attributes:
    path: folder or zip archive.
    uid: SeriesInstanceUID.
    structures: that are taken, the newest first; no class is in two of them.
    meanings: of each of these, ROI -> class, of those that have contours.
    lowest, step: height of the lowest slice, and between slices, mm; NaN if they are not axial.
    shear: way from slice to slice, which is their spacing, over the height between them: 1 unless
      slices are moved within their planes, as by a tilted gantry.
    patient_id: PatientID, '' where it has none.
  """

  path: pathlib.Path
  uid: str = ''
  structures: Sequence[structure_set.StructureSet] = ()
  meanings: Sequence[Mapping[str, str]] = ()
  lowest: float = np.nan
  step: float = np.nan
  shear: float = np.nan
  problem: str = ''
  patient_id: str = ''

  def classes(self) -> set[str]:
    """What is contoured: classes and pairs."""
    return {noun for of_set in self.meanings for noun in of_set.values()}


def places(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> folder or zip archive of each patient.

  Raises:
    SourceError: if there is none, or two have one name.

  Warns:
    UserWarning: of files beside the patients.
  """
  patients: dict[str, pathlib.Path] = {}
  others = []
  for path in files.entries(folder):
    packed = path.suffix.casefold() == '.zip'
    if inventory.is_hidden(path.name) or path.name == 'dataset.json':
      continue
    if not path.is_dir() and not packed:
      others.append(path)
      continue
    name = path.stem if packed and not path.is_dir() else path.name
    if name in patients:
      raise SourceError(f'{path}: case {name} is also {patients[name]}; keep one of them')
    patients[name] = path
  if others:
    files.note(f'rtstruct_folder: {files.counted(others, "files beside the patients")}')
  if not patients:
    raise SourceError(f'{folder}: no folder or .zip of a patient in it')
  return patients


def read(path: pathlib.Path, names: RoiNames, index: Mapping[str, Any]) -> Patient:
  """A patient's scan, structure sets and the classes of their ROIs.

  Args:
    path: folder or zip archive.
    names: which ROI stands for which class.
    index: content of `dataset.json`; `structure_set`, the label or file of those to take, with its
      folders where it has a /.

  Warns:
    UserWarning: of structure sets that are not taken.
  """
  patient_id = ''
  try:
    study = dicom.find_series(path)
    if study.unsupported and not study.series:
      raise SourceError(next(iter(study.unsupported.values())))
    patient_id = _patient_id(path, study.series[0]) if study.series else ''
    sets = structure_set.find(path, study)
    uid, structures, meanings = _join(path, study, sets, _matching(path, study, sets, index), names)
    series = next(one for one in study.series if one.uid == uid)
    for other in study.series:
      if other.problem and other.uid != uid:  # it may be a structure set beside other slices
        files.note(f'{other.problem}; taken to be of a series that is not used')
    lowest, step, shear = _heights(path, series)
    patient_id = _patient_id(path, series)
  except UserError as error:
    problem = str(error) if str(path) in str(error) else f'{path}: {error}'
    return Patient(path, problem=problem, patient_id=patient_id)
  return Patient(path, uid, structures, meanings, lowest, step, shear, patient_id=patient_id)


def _check_one_patient(
  path: pathlib.Path, study: dicom.Study, sets: Sequence[structure_set.StructureSet]
) -> None:
  """SourceError if scans of several PatientIDs are contoured: one would count as all of them.

  So it is a level above the patients, in the folder of a collection as its retriever leaves it.
  """
  contoured = {uid for one in sets for uid in one.series}
  scans = [one for one in study.series if one.uid in contoured and not one.problem]
  ids = {_patient_id(path, one) for one in scans} - {''}
  if len(ids) > 1:
    raise SourceError(
      f'{path}: holds contoured scans of {len(ids)} patients; give the folder in which each of '
      "them has one of their own, or if they are one patient's, name what to take by "
      '"structure_set" in dataset.json'
    )


def _matching(
  path: pathlib.Path,
  study: dicom.Study,
  sets: Sequence[structure_set.StructureSet],
  index: Mapping[str, Any],
) -> list[structure_set.StructureSet]:
  """The structure sets that are asked for and of a series that is there, the newest first."""
  pattern = str(index.get('structure_set', '*'))
  file = lambda one: one.name if '/' in pattern else pathlib.PurePosixPath(one.name).name
  named = [
    one for one in sets
    if any(fnmatch.fnmatchcase(roi_names.plain(text), roi_names.plain(pattern))
           for text in (one.label, file(one)))
  ]  # fmt: skip
  if not sets or not named:
    names = ', '.join(f'{one.label or "no label"} ({one.name})' for one in sets)
    kind = f'structure set called {pattern}; there are {names}' if sets else 'RTSTRUCT or SEG'
    raise SourceError(f'{path}: no {kind}; export it with its series, or move the patient away')
  uids = {series.uid for series in study.series}
  matching = [one for one in named if not one.series or uids & set(one.series)]
  if not matching:
    raise SourceError(
      f'{path}/{named[-1].name}: is of series {", ".join(named[-1].series)}, which is not there; '
      'export both again'
    )
  _check_one_patient(path, study, matching)
  return matching[::-1]


def _join(
  path: pathlib.Path,
  study: dicom.Study,
  sets: Sequence[structure_set.StructureSet],
  matching: Sequence[structure_set.StructureSet],
  names: RoiNames,
) -> tuple[str, list[structure_set.StructureSet], list[dict[str, str]]]:
  """The newest structure set, and those of the same scan that have other classes: one a structure.

  Of a set with a class that a newer one has, which is another version, nothing counts.

  Returns:
    SeriesInstanceUID, the structure sets, and of each of them ROI -> class.
  """
  uid, known = '', set[str]()
  taken: list[structure_set.StructureSet] = []
  meanings: list[dict[str, str]] = []
  here = {series.uid for series in study.series}
  is_here = lambda one: not one.series or here & set(one.series)
  left_out = {
    one.name: 'not asked for' if is_here(one) else 'of a scan that is not here' for one in sets
  }
  for one in matching:
    own, doubt = _meanings(one, names)
    sides = {*labels.classes_of(dict(enumerate(own.values())), names.template)}
    if not own and doubt is None:
      left_out[one.name] = 'no ROI stands for a class'
    elif taken and _referred(study, one) != [uid]:
      left_out[one.name] = 'of another scan, which counts in a folder of its own'
    elif known & sides:
      left_out[one.name] = f'a newer one has {", ".join(sorted(known & sides))} too'
    elif doubt is not None:
      raise doubt
    else:
      uid = uid or _series_of(path, study, one)
      taken.append(one)
      meanings.append(own)
      known |= sides
      del left_out[one.name]
  if not taken:
    newest = matching[0]
    shown = ', '.join(newest.heights) or 'none has contours'
    raise SourceError(f'{path}/{newest.name}: no ROI stands for a class ({shown}); see "rois"')
  used = ' and '.join(f'{one.name} ({one.label})' for one in taken)
  used += ' together' * (len(taken) > 1)
  if left_out:
    others = ', '.join(f'{name} ({why})' for name, why in left_out.items())
    files.note(f'{path}: takes {used}, not {others}')
  elif len(taken) > 1:
    files.note(f'{path}: takes {used}')
  return uid, taken, meanings


def _meanings(
  one: structure_set.StructureSet, names: RoiNames
) -> tuple[dict[str, str], roi_names.RoiNameError | None]:
  """ROI -> class of those that stand for one; and what is wrong where one may stand for two."""
  meanings: dict[str, str] = {}
  doubt = None
  for roi in one.heights:
    try:
      noun = names.class_of(roi, one.written.get(roi, ''))
    except roi_names.RoiNameError as error:
      doubt = doubt or error
    else:
      meanings |= {} if noun is None else {roi: noun}
  return meanings, doubt


def _series_of(
  path: pathlib.Path, study: dicom.Study, structures: structure_set.StructureSet
) -> str:
  """The series that a structure set is of."""
  referred = _referred(study, structures)
  if len(referred) != 1:
    kind = f'several CT series ({", ".join(referred)})' if referred else 'no CT series'
    raise SourceError(
      f'{path}: {kind} for {structures.name}; keep the one that was contoured, or name a structure '
      'set that says which: "structure_set" in dataset.json'
    )
  return referred[0]


def _referred(study: dicom.Study, structures: structure_set.StructureSet) -> list[str]:
  """The series that a structure set says that it is of; all where it says none."""
  uids = list(dict.fromkeys(series.uid for series in study.series))
  return [uid for uid in uids if uid in structures.series] or uids


def _heights(path: pathlib.Path, series: dicom_series.SeriesFiles) -> tuple[float, float, float]:
  """Height of the lowest slice, distance of slices and shear as of `Patient`."""
  places = []
  fields = ['ImagePositionPatient', 'ImageOrientationPatient', 'Modality']
  with dicom_series.opened(path) as open_file:
    for name in series.names:
      header = dicom_series.parse(name, open_file, specific_tags=[*fields, 'SOPClassUID'])
      place, turns = (dicom_series.value(header, field) for field in fields[:2])
      try:
        rows, columns = np.array(turns, float).reshape(2, 3)
        place = np.array(place, float).reshape(3)
      except (TypeError, ValueError):  # told of when the series is read
        return np.nan, np.nan, np.nan
      if abs(np.cross(rows, columns)[2]) < 0.999:
        return np.nan, np.nan, np.nan
      places.append(place)
  heights, first = np.unique([place[2] for place in places], return_index=True)
  if len(heights) < 2:
    return float(heights[0]), np.nan, np.nan
  way = places[first[-1]] - places[first[0]]
  shear = float(np.linalg.norm(way) / way[2])
  return float(heights[0]), float(np.median(np.diff(heights))), shear


def _patient_id(path: pathlib.Path, series: dicom_series.SeriesFiles) -> str:
  """PatientID of a series, '' where it has none."""
  with dicom_series.opened(path) as open_file:
    fields = ['PatientID', 'Modality', 'SOPClassUID']
    header = dicom_series.parse(series.names[0], open_file, specific_tags=fields)
  return str(dicom_series.value(header, 'PatientID') or '').strip()
