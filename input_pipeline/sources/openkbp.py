"""OpenKBP: head and neck planning CT."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from input_pipeline.files import text_files
from input_pipeline.sources import field_of_view, files, labels
from input_pipeline.sources.base import Case, Scan, Source, SourceError, in_template_order, loader

ORGANS = {
  'Brainstem': (1, 'brainstem'),
  'SpinalCord': (2, 'spinal cord'),
  'RightParotid': (3, 'right parotid'),
  'LeftParotid': (4, 'left parotid'),
  'Esophagus': (5, 'esophagus'),
  'Larynx': (6, 'larynx'),
  'Mandible': (7, 'mandible'),
}
# Often contoured over part of the scan only. The others are contoured whole: background beyond
# their first and last slice is reliable.
_OPENKBP_PARTIAL = ('SpinalCord', 'Esophagus')
# Below the field of view of every scan: what shows most ends at the carina, 360 mm from the vertex.
# Lungs, aorta, heart and the like are partly visible: nobody labelled them, which is another thing.
_ABSENT = (
  'spleen', 'kidney', 'gallbladder', 'liver', 'stomach', 'postcava', 'portal and splenic vein',
  'pancreas', 'adrenal gland', 'duodenum', 'colon', 'intestine', 'rectum', 'bladder', 'prostate',
  'femoral head', 'celiac trunk',
)  # fmt: skip
# Not above the lowest slice of the mandible: in none of 131 scans does a lung come within 40 mm.
_BELOW_THE_MANDIBLE = ('lung',)
_TUNE_CASES, _TUNE_SEED = 16, 20261
# What each of three institutions would have contoured, had they not shared a protocol.
_PARTS = (
  ('brainstem', 'spinal cord'),
  ('right parotid', 'left parotid'),
  ('esophagus', 'larynx', 'mandible'),
)


def openkbp_cases(manual_dir: str | None, *, tune: bool = False) -> list[Case]:
  """The cases of OpenKBP.

  NOTE: the blanked ends of a scan (`blanked_slices`) stay valid background for every class: they
  hold nothing but -1000 HU, no organ is there to be missed.

  Args:
    manual_dir: folder that holds `train/` and `val/`, each with its `dataset.json`.
    tune: leave `val/` alone, and hold out 16 fixed training patients as validation cases instead.

  Raises:
    SourceError: if a folder or an index is missing or malformed.
  """
  folder = _folder(manual_dir)
  train = _read_openkbp(folder / 'train', 'train')
  if not tune:
    return train + _read_openkbp(folder / 'val', 'validation')
  order = np.random.default_rng(_TUNE_SEED).permutation(len(train))
  held_out = set(order[:_TUNE_CASES].tolist())
  return [
    dataclasses.replace(case, split='validation') if i in held_out else case
    for i, case in enumerate(train)
  ]


def _folder(manual_dir: str | None) -> pathlib.Path:
  return files.folder_of('openkbp', manual_dir, 'what input_pipeline.openkbp_download made')


def _read_openkbp(folder: pathlib.Path, split: str) -> list[Case]:
  index = folder / 'dataset.json'
  if not index.is_file():
    raise SourceError(f'{index}: no such file; give the folder of train/ and val/ of OpenKBP')
  try:
    entries = text_files.read_json(index)['cases']
    cases = [_openkbp_case(folder, entry, split) for entry in entries]
  except (text_files.TextFileError, KeyError, TypeError) as error:
    raise SourceError(f'{index}: not an OpenKBP index ({error!r}); copy it again') from error
  return sorted(cases, key=lambda case: case.name)


def _openkbp_case(folder: pathlib.Path, entry: dict, split: str) -> Case:
  ct, oar = (folder / entry[kind] for kind in ('ct', 'oar'))
  labelled = tuple(entry['labelled_organs'])
  load = functools.partial(_load, ct, oar, labelled)
  if missing := [path for path in (ct, oar) if not path.is_file()]:
    problem = f'{missing[0]}: listed in {folder / "dataset.json"} but missing; copy it again'
    load = functools.partial(files.fail, problem)
  ranges = {
    ORGANS[organ][1]: _heights(entry, entry['label_slices'][organ])
    for organ in _OPENKBP_PARTIAL
    if organ in labelled
  }
  case = Case(
    source='openkbp',
    name=entry['id'],
    split=split,
    supervised=in_template_order([ORGANS[organ][1] for organ in labelled]),
    load=load,
    slice_ranges=ranges,
  )
  case = field_of_view.declare(case, _ABSENT)
  if 'Mandible' not in labelled:
    return case
  low, _ = _heights(entry, entry['label_slices']['Mandible'])
  top = (entry['shape'][2] - 0.5) * entry['spacing_mm'][2]
  return field_of_view.declare(case, _BELOW_THE_MANDIBLE, heights=(low, top))


def _heights(entry: dict, slices: Sequence[int]) -> tuple[float, float]:
  """First and last index along file axis 2 -> mm, from the lower face to the upper face."""
  step, number = entry['spacing_mm'][2], entry['shape'][2]
  first, last = slices
  if entry['axcodes'][2] == 'I':
    first, last = number - 1 - last, number - 1 - first
  elif entry['axcodes'][2] != 'S':
    raise SourceError(f'{entry["id"]}: axcodes {entry["axcodes"]}; axis 2 must run along I or S')
  return (first - 0.5) * step, (last + 0.5) * step


@loader('_load_openkbp')
def _load(ct: pathlib.Path, oar: pathlib.Path, labelled: tuple[str, ...]) -> Scan:
  scan, organs = volume.read_image(ct), volume.read_labels(oar)
  files.check_grid(oar, organs.geometry, ct, scan.geometry)
  mapping = {}
  for organ in labelled:
    value, name = ORGANS[organ]
    mapping[value] = TEMPLATE.get(name).index
  return Scan(scan.array, labels.map_codes(organs.array, mapping, name=str(oar)), scan.geometry)


OPENKBP = Source(
  name='openkbp',
  description='Head and neck planning CT, 187 patients, up to seven organs at risk contoured.',
  licence='MIT',
  citation=(
    'A. Babier, B. Zhang, R. Mahmood, K.L. Moore, T.G. Purdie, A.L. McNiven, T.C.Y. Chan, '
    '"OpenKBP: The open-access knowledge-based planning grand challenge and dataset," '
    'Medical Physics 48, 5549-5561, 2021'
  ),
  cases=openkbp_cases,
  expected=187,
  classes=in_template_order([name for _, name in ORGANS.values()]),
  absent=field_of_view.closure(_ABSENT),
)

OPENKBP_TUNE = dataclasses.replace(
  OPENKBP,
  name='openkbp_tune',
  description='The training split of OpenKBP, 16 patients of it held out to make choices on.',
  cases=functools.partial(openkbp_cases, tune=True),
  expected=158,
)


def openkbp_parts_cases(manual_dir: str | None) -> list[Case]:
  """The cases of OpenKBP as three datasets that each label some organs: see `_PARTS`.

  Each training patient keeps the organs of one dataset, in turn; one who has none of them is left
  out. The validation patients keep all.

  Raises:
    SourceError: as `openkbp_cases`.
  """
  cases = openkbp_cases(manual_dir)
  kept = [case for case in cases if case.split != 'train']
  for number, case in enumerate(case for case in cases if case.split == 'train'):
    part = tuple(name for name in case.labelled if name in _PARTS[number % len(_PARTS)])
    known = in_template_order((*part, *case.absent))
    ranges = {name: heights for name, heights in case.slice_ranges.items() if name in known}
    if part:
      kept.append(dataclasses.replace(case, supervised=known, slice_ranges=ranges))
  return kept


OPENKBP_PARTS = dataclasses.replace(
  OPENKBP,
  name='openkbp_parts',
  description='A third of the training labels of OpenKBP, as of three datasets of few organs.',
  cases=openkbp_parts_cases,
  expected=180,
)

_PTV_TEMPLATE = TEMPLATE.extend(
  [
    {
      'name': 'ptv70',
      'prompt': 'A computerized tomography of the high-dose planning target volume',
      'noun': 'the high-dose planning target volume',
      'synonyms': ['high-dose planning target volume', 'target volume of 70 Gy', 'PTV 70'],
    }
  ]
)


def openkbp_ptv_cases(manual_dir: str | None) -> list[Case]:
  """The high-dose target volume of each patient of OpenKBP, alone: it overlaps organs.

  Raises:
    SourceError: as `openkbp_cases`.

  Warns:
    UserWarning: of patients without one, who are left out.
  """
  cases, lacking = [], []
  for case in openkbp_cases(manual_dir):
    folder = _folder(manual_dir) / ('train' if case.split == 'train' else 'val')
    ct, ptv = (folder / f'{case.name}_{kind}.nii.gz' for kind in ('ct', 'ptv'))
    if os.path.lexists(ptv):  # one patient has none
      load = functools.partial(
        files.load_nifti, ct, ptv, {70: 'ptv70', 63: None, 56: None}, _PTV_TEMPLATE
      )
      target = Case('openkbp_ptv', case.name, case.split, ('ptv70',), load)
      cases.append(field_of_view.declare(target, _ABSENT, _PTV_TEMPLATE))
    else:
      lacking.append(ptv)
  if lacking:
    files.note(f'openkbp_ptv: {files.counted(lacking, "patients without a target volume")}')
  return cases


OPENKBP_PTV = dataclasses.replace(
  OPENKBP,
  name='openkbp_ptv',
  description='The high-dose target volume (PTV70) of OpenKBP, a class beyond the template.',
  cases=openkbp_ptv_cases,
  expected=186,
  classes=('ptv70',),
  template=lambda manual_dir: _PTV_TEMPLATE,
)
