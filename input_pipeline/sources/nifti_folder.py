"""The user's own scans: a raw dataset of nnU-Net, with classes of their own.

  FOLDER/dataset.json
  FOLDER/imagesTr/NAME.nii.gz    or NAME_0000.nii.gz
  FOLDER/labelsTr/NAME.nii.gz
  FOLDER/imagesTs, labelsTs      optional: cases of the test split; names in any case of letters

Files end in .nii.gz, .nii, .nrrd, .mha, .nhdr or .mhd (all but NIfTI with the extra `itk`); a label
map may be a segmentation of 3D Slicer, NAME.seg.nrrd, with segments named and numbered as here.

`dataset.json` needs `labels`, name -> value (or the older value -> name); a list of values makes a
region that holds several structures. Names are those of the template and their synonyms, however
they are spelled ('SpinalCord', 'Parotid_L'), paired organs without a side ('kidney'), or names
declared in `new_classes`. Voxels of the label `ignore` are neither trained nor scored. Optional
fields:

  new_classes  list of objects: name, prompt, synonyms, parent, ... as `anatomy.Template.extend`
  ignored      names of labels that are not used: background
  supervised   case -> names of what was labelled in it, or one list for all cases
  missing_is   what it means where a label map has no voxel of a class, in the cases that
               `supervised` does not name: 'unlabelled', it is neither trained nor scored there, or
               'absent' from the patient; without either, that is an error
  absent       case -> names of what its field of view cannot show, or one list for all cases, also
               of classes that are no labels: background, which is trained and scored
  patients     case -> patient, of the cases that are several scans of one: no split divides them
  splits       {"validation": [cases], "test": [cases]}; by default, without imagesTs, about a fifth
               is held out, each patient drawn by name, and `prepare` keeps what was drawn
  licence, citation (or reference)  texts that the prepared source keeps
  channel_names (or modality)  of nnU-Net: channel 0 must be the CT, others are not used
  dataset      of nnU-Net: case -> {"images": [CT], "label": file}, in place of imagesTr
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from input_pipeline.anatomy import Template
from input_pipeline.anatomy.resolve import find_class
from input_pipeline.ct import slicer_segments
from input_pipeline.errors import UserError, suggest
from input_pipeline.files import file_kinds, inventory, text_files
from input_pipeline.sources import (
  absence,
  dataset_fields,
  field_of_view,
  files,
  labels,
  nnunet,
  patient_ids,
  roi_names,
  split_lists,
)
from input_pipeline.sources.base import Case, Source, SourceError

_HOLDS = 'dataset.json, imagesTr/ and labelsTr/'
_VALIDATION_SHARE = 0.2


def nifti_folder_cases(manual_dir: str | None) -> list[Case]:
  """The cases of a folder; see the head of this file.

  Raises:
    SourceError: if a file is missing, or `dataset.json` contradicts itself, the template or the
      files.
    TextFileError: if `dataset.json` cannot be read.
  """
  folder, index = _open(manual_dir)
  template = files.template_of(folder, index)
  meanings = _meanings(index, template, folder / 'dataset.json')
  pairs = _all_pairs(folder, index)
  if not any(pair.image for pair in pairs['Tr'].values()):
    raise SourceError(
      f'{folder / "imagesTr"}: no NIfTI files; it must hold NAME_0000.nii.gz, .nrrd or .mha'
    )
  path = folder / 'dataset.json'
  dataset_fields.tell_unread(index, path)
  splits, patients = _splits(folder, index, pairs)
  drawn = _draws(index, pairs)
  cases = []
  resolve = functools.partial(_resolve, template=template)
  absent = field_of_view.read(index, path, splits, resolve, template)
  labelled = _labelled(folder, index, pairs, meanings, absent, template)
  for name, pair in {**pairs['Tr'], **pairs['Ts']}.items():
    known = _supervised(folder, index, name, meanings, template)
    if name in labelled:
      known = labels.restrict(meanings, sorted(labelled[name]), template)
    if set(classes := absent.get(name, ())) & set(labels.classes_of(meanings, template)):
      left = field_of_view.labelled(labels.names_of(known), classes, template, path)
      if pair.label is not None and not pair.problem:
        field_of_view.check_empty(name, pair.label, meanings, classes, template)
      known = labels.restrict(known, left, template)
    supervised = labels.classes_of(known, template)
    some = () if supervised == labels.classes_of(meanings, template) else (supervised,)
    if pair.problem or pair.image is None or pair.label is None:
      load = functools.partial(files.fail, pair.problem)
    else:
      load = functools.partial(files.load_nifti, pair.image, pair.label, meanings, template, *some)
    patient = patients.get(name, '')
    case = Case('nifti_folder', name, splits[name], supervised, load, drawn=drawn, patient=patient)
    cases.append(field_of_view.declare(case, classes, template))
  return cases


def _open(manual_dir: str | None) -> tuple[pathlib.Path, dict]:
  folder = files.folder_of('nifti_folder', manual_dir, _HOLDS)
  path = folder / 'dataset.json'
  if not os.path.lexists(path):
    raise SourceError(f'{path}: no such file; write one with "labels": {{"background": 0, ...}}')
  try:
    index = text_files.read_json(path)
  except OSError as error:
    raise SourceError(inventory.unreadable(path, error)) from error
  if not isinstance(index, dict) or not isinstance(index.get('labels'), dict):
    raise SourceError(f'{path}: no "labels"; add "labels": {{"background": 0, "liver": 1}}')
  dataset_fields.check_label_maps(index, path)
  return folder, index


def _meanings(index: dict, template: Template, path: pathlib.Path) -> dict[int, labels.Meaning]:
  """Label value -> class names, or None where it is not used; one error names all bad labels."""
  is_unused = unused(index, path)
  names_of: dict[int, list[str]] = {}
  faults = []
  for name, values in by_name(index['labels'], path).items():
    if roi_names.plain(name) == 'background':
      continue
    resolved = labels.IGNORE if roi_names.plain(name) == labels.IGNORE else None
    if not resolved and not is_unused(name):
      try:
        resolved = _resolve(name, template)
      except ValueError as error:
        faults.append(f'label {name!r} {error}')
    for value in values:
      if not 0 < value <= 255:
        faults.append(f'label {name!r} has value {value}; expected 1..255')
      names_of.setdefault(value, []).extend([resolved] if resolved else [])
  for value, names in names_of.items():
    try:
      labels.check_meaning(names, template)
    except ValueError as error:
      faults.append(f'value {value}: {error}')
  if faults:
    raise SourceError(f'{path}: {"; ".join(faults)}')
  return {value: tuple(names) or None for value, names in names_of.items()}


def unused(index: Mapping, path: pathlib.Path) -> Callable[[str], bool]:
  """Whether a label is in `ignored`, from the content of a `dataset.json`; `ignore` never is.

  Raises:
    SourceError: if `ignored` is no list of names.
  """
  names = {roi_names.plain(name) for name in _texts(index.get('ignored', ()), '"ignored"', path)}
  return lambda name: roi_names.plain(name) in names - {labels.IGNORE}


def _texts(value: Any, what: str, path: pathlib.Path) -> Sequence[str]:
  """A list of names; SourceError if it is anything else, as one name without its brackets."""
  if not text_files.are_texts(value):
    raise SourceError(f'{path}: {what} is {value!r}; expected a list of names')
  return value


def by_name(declared: Mapping, path: pathlib.Path) -> dict[str, list[int]]:
  """Both styles of nnU-Net: {"liver": 1}, {"liver": [1, 2]}, and the older {"1": "liver"}.

  A number in quotes counts as one: {"liver": "1"}.

  Raises:
    SourceError: if values are no integers; it names all of them.
  """
  named: dict[str, list[int]] = {}
  faults = []
  for key, value in declared.items():
    if isinstance(value, str) and (key.strip().isdecimal() or not value.strip().isdecimal()):
      key, value = value, key
    values = value if isinstance(value, list) else [value]
    try:
      numbers = [int(v) for v in values]
      if any(number != float(v) for number, v in zip(numbers, values, strict=True)):
        raise ValueError
      named.setdefault(key, []).extend(numbers)
    except (TypeError, ValueError, OverflowError):  # JSON may hold Infinity
      faults.append(f'label {key!r} has value {value!r}; expected a whole number')
  if faults:
    raise SourceError(f'{path}: {"; ".join(faults)}')
  return named


def _resolve(name: str, template: Template) -> str:
  """Canonical name or pair that a label's name means; ValueError with the fix if there is none."""
  known = find_class(name, template)
  if known is not None:
    return known
  text = roi_names.plain(name)
  guess = suggest(text, template.names()).partition('known:')[0].strip()
  guess = f'{guess} Otherwise ' if guess else ''
  raise SourceError(
    f'is no class of the template; {guess}declare it: "new_classes": [{{"name": "{text}"}}], or '
    'list it in "ignored"'
  )


def _all_pairs(folder: pathlib.Path, index: dict) -> dict[str, dict[str, '_Pair']]:
  """'Tr' and 'Ts' -> the files of their cases."""
  path = folder / 'dataset.json'
  several = nnunet.check_channels(index, path)
  pairs = {part: _pairs(folder, part, several=several) for part in ('Tr', 'Ts')}
  if listed := nnunet.elsewhere(index, path):
    pairs['Tr'] = {name: _Pair(*files_of) for name, files_of in listed.items()}
  for part, held in pairs.items():
    pairs[part] = {name: _of_slicer(pair, index, path) for name, pair in held.items()}
  both = [pair for held in pairs.values() for pair in held.values()]
  names = [file for pair in both for file in (pair.image, pair.label) if file is not None]
  nnunet.check_ending(index, path, names)
  return pairs


def _of_slicer(pair: '_Pair', index: dict, path: pathlib.Path) -> '_Pair':
  """A pair; with a problem where 3D Slicer has numbered its segments otherwise."""
  if pair.problem or pair.label is None or not slicer_segments.is_segmentation(pair.label):
    return pair
  declared = {
    roi_names.plain(name): values for name, values in by_name(index['labels'], path).items()
  }
  problem = ''
  try:
    for segment in slicer_segments.segments(pair.label):
      values = declared.get(roi_names.plain(segment.name), [])
      if segment.layer:
        problem = f'segment {segment.name!r} overlaps others; a label map holds one layer'
      elif segment.value not in values:
        problem = f'segment {segment.name!r} has value {segment.value}, in {path.name} {values}'
      if problem:
        return dataclasses.replace(pair, problem=f'{pair.label}: {problem}: export it as labels')
  except UserError as error:
    return dataclasses.replace(pair, problem=str(error))
  return pair


@dataclasses.dataclass(frozen=True)
class _Pair:
  """The files of a case; `problem` is why they cannot be used, '' if both are there and can."""

  image: pathlib.Path | None
  label: pathlib.Path | None
  problem: str = ''


def _pairs(folder: pathlib.Path, part: str, *, several: bool) -> dict[str, _Pair]:
  """Case -> its files.

  Args:
    folder: of the dataset.
    part: 'Tr' or 'Ts'.
    several: whether further channels are declared.

  Warns:
    UserWarning: of what is left out: test scans without labels, and files that are no
      scans.
  """
  images, maps = (_held(_part(folder, f'{kind}{part}')) for kind in ('images', 'labels'))
  further = inventory.further_channels(images, maps)
  names = inventory.case_names([stem for stem in images if stem not in further])
  scans: dict[str, list[inventory.File]] = {}
  for stem, name in names.items():
    # A label map of exactly this name decides what a number of four digits is.
    scans.setdefault(stem if stem in maps else name, []).extend(images[stem])
  channels = {stem[:-5]: images[stem][0].path for stem in further}
  pairs, unlabelled = {}, []
  for name in sorted(scans.keys() | maps.keys()):
    image, label = scans.get(name, []), maps.get(name, [])
    paths = [file.path for file in (*image, *label)]
    problem = next((file.problem for file in (*image, *label) if file.problem), '')
    if not label and part == 'Ts':
      unlabelled += paths
      continue
    if not label:
      problem = (
        f'{paths[0]}: no labels{part}/{name}.nii.gz; label the scan, or move it out of images{part}'
      )
    elif not image:
      problem = f'{paths[0]}: no scan of this name in images{part}'
    elif len(paths) > 2:
      same = image if len(image) > 1 else label
      problem = f'{same[0].path} and {same[1].path.name} are both of case {name}; keep one'
    elif name in channels and not several:
      problem = f'{channels[name]}: a second channel; one CT channel (_0000) is supported'
    first_image, first_label = (held[0].path if held else None for held in (image, label))
    pairs[name] = _Pair(first_image, first_label, problem)
  if several and further:
    places = [images[stem][0].path for stem in further]
    files.note(files.counted(places, 'channels besides the CT'))
  if unlabelled:
    files.note(files.counted(unlabelled, 'scans of imagesTs without a label map in labelsTs'))
  return pairs


def _part(folder: pathlib.Path, name: str) -> pathlib.Path:
  """What is called `name` in a folder, in any case of letters.

  Warns:
    UserWarning: if there are several, of those that are left out.
  """
  exact = folder / name
  same = [path for path in files.entries(folder) if path.name.casefold() == name.casefold()]
  part = exact if exact in same or not same else same[0]
  for path in same:
    if path != part:
      files.note(f'{path}: left out, as {part.name} is beside it')
  return part


def _held(folder: pathlib.Path) -> dict[str, list[inventory.File]]:
  """Name without its ending -> the files of that name, damaged ones too."""
  if not os.path.lexists(folder):
    return {}
  if not os.path.isdir(folder):
    raise SourceError(f'{folder}: no folder, or a link to none; get it, or remove it')
  held = inventory.look(folder, file_kinds.VOLUMES, deep=False)
  left_out = [f'{folder}: left out: {phrase}' for phrase in held.notes()]
  left_out += [f'{path}: a folder, not looked into' for path in held.folders]
  for message in left_out:
    files.note(message)
  stems: dict[str, list[inventory.File]] = {}
  for file in sorted((*held.used, *held.failed), key=lambda file: file.name):
    name = file.name
    if file.kind == 'image' or name.lower().endswith('.hdr'):  # another format, or two files
      name = pathlib.PurePath(name).stem
    stems.setdefault(inventory.stem(name), []).append(file)
  return stems


def _splits(
  folder: pathlib.Path, index: dict, pairs: Mapping[str, Mapping]
) -> tuple[dict[str, str], dict[str, str]]:
  """Case -> split; and case -> patient, of those that are declared."""
  path = folder / 'dataset.json'
  twice = sorted(set(pairs['Tr']) & set(pairs['Ts']))
  if twice:
    raise SourceError(f'{folder}: {twice[0]} is in imagesTr and in imagesTs; keep one')
  splits = dict.fromkeys(pairs['Tr'], 'train') | dict.fromkeys(pairs['Ts'], 'test')
  given, unknown, faults = split_lists.read(index, path, splits)
  faults += [f'splits names the case {name!r}, which has no scan and label' for name in unknown]
  splits |= given
  supervised = index.get('supervised', {})
  for name in supervised if isinstance(supervised, dict) else ():
    if name not in splits:
      faults.append(f'supervised names the case {name!r}, which has no scan and label')
  if faults:
    raise SourceError(f'{path}: {"; ".join(faults)}')
  patients = patient_ids.read(index, path, splits)
  patient_ids.tell(index, path, splits)
  if _draws(index, pairs):
    held = patient_ids.hold_out(pairs['Tr'], patients, _VALIDATION_SHARE)
    splits |= dict.fromkeys(held, 'validation')
  patient_ids.check(splits, patients, path)
  return splits, patients


def _draws(index: dict, pairs: Mapping[str, Mapping]) -> bool:
  return not index.get('splits') and not pairs['Ts']


def _labelled(
  folder: pathlib.Path,
  index: dict,
  pairs: Mapping[str, Mapping[str, '_Pair']],
  meanings: Mapping[int, labels.Meaning],
  absent: Mapping[str, Collection[str]],
  template: Template,
) -> dict[str, frozenset[str]]:
  """Case -> names that its label map holds, of the cases in which all others are not labelled.

  Raises:
    SourceError: if some label maps lack a class and nothing says what that means.
  """
  path, listed = folder / 'dataset.json', index.get('supervised', {})
  if not isinstance(listed, dict | list):
    raise SourceError(
      f'{path}: "supervised" is {json.dumps(listed)}; expected the list of labelled classes, or '
      'case -> list'
    )
  word = absence.reads(index, path)
  if word == absence.ABSENT or isinstance(listed, list):
    return {}
  both = {**pairs['Tr'], **pairs['Ts']}
  maps = {
    name: pair.label
    for name, pair in both.items()
    if pair.label is not None and not pair.problem and name not in listed
  }
  occurs = absence.occurring(maps, meanings)
  names = sorted(labels.names_of(meanings))
  declared = {
    case: set(names) - set(field_of_view.labelled(names, classes, template, path))
    for case, classes in absent.items()
  }
  table = absence.partial(occurs, names, declared)
  if word == absence.UNLABELLED:
    absence.tell(table)
    return occurs
  absence.ask(path, table)
  return {}


def _supervised(
  folder: pathlib.Path, index: dict, name: str, meanings: Mapping, template: Template
) -> dict[int, labels.Meaning]:
  """The label values of a case, without what the case does not label."""
  listed = index.get('supervised', {})
  if isinstance(listed, dict) and name not in listed:
    return dict(meanings)
  names = listed[name] if isinstance(listed, dict) else listed
  path = folder / 'dataset.json'
  known, faults = [], []
  for text in _texts(names, f'supervised of {name}', path):
    try:
      known.append(_resolve(text, template))
    except ValueError as error:
      faults.append(f'{text!r} {error}')
  kept = labels.restrict(meanings, known, template)
  missing = sorted(set(known) - {n for names in kept.values() for n in names or ()})
  faults += [f'{noun!r} has no value in "labels"' for noun in missing]
  if faults:
    raise SourceError(f'{path}: supervised of {name}: {"; ".join(faults)}')
  return kept


NIFTI_FOLDER = Source(
  name='nifti_folder',
  description='Your own scans and labels, in the folder layout of nnU-Net.',
  licence='as the folder says',
  citation='',
  cases=nifti_folder_cases,
  template=lambda manual_dir: files.template_of(*_open(manual_dir)),
  terms=lambda manual_dir: files.terms_of(*_open(manual_dir)),
)
