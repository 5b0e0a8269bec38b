"""TotalSegmentator: a mask file for each structure; those that the template has are used."""

import functools
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from input_pipeline.files import inventory, text_files
from input_pipeline.sources import files
from input_pipeline.sources.base import Case, Scan, Source, SourceError, in_template_order, loader

# Class -> its mask files, of which it is the union. NOTE: its femurs are whole bones, no heads.
# Its colon holds the rectum.
_FILES = {
  'spleen': ('spleen',),
  'right kidney': ('kidney_right',),
  'left kidney': ('kidney_left',),
  'gallbladder': ('gallbladder',),
  'esophagus': ('esophagus',),
  'liver': ('liver',),
  'stomach': ('stomach',),
  'aorta': ('aorta',),
  'postcava': ('inferior_vena_cava',),
  'portal and splenic vein': ('portal_vein_and_splenic_vein',),
  'pancreas': ('pancreas',),
  'right adrenal gland': ('adrenal_gland_right',),
  'left adrenal gland': ('adrenal_gland_left',),
  'duodenum': ('duodenum',),
  'right lung': ('lung_upper_lobe_right', 'lung_middle_lobe_right', 'lung_lower_lobe_right'),
  'left lung': ('lung_upper_lobe_left', 'lung_lower_lobe_left'),
  'colon': ('colon',),
  'intestine': ('small_bowel',),
  'bladder': ('urinary_bladder',),
  'prostate': ('prostate',),
  'spinal cord': ('spinal_cord',),
}
# What belongs to a class as well, where a download has it: version 2 leaves cysts out of kidneys.
_PARTS = {'right kidney': 'kidney_cyst_right', 'left kidney': 'kidney_cyst_left'}
_SPLITS = {'train': 'train', 'val': 'validation', 'test': 'test'}


def totalsegmentator_cases(manual_dir: str | None) -> list[Case]:
  """All scans; a class is supervised where all its mask files are there, empty ones included.

  Args:
    manual_dir: folder that holds `sNNNN/{ct.nii.gz,segmentations/}` and `meta.csv`.

  Raises:
    SourceError: if there are no scans, or no `meta.csv`.

  Warns:
    UserWarning: of scans that `meta.csv` lists and that are not there, and of classes that some
      scans, or all, have no masks of.
  """
  folder = files.folder_of('totalsegmentator', manual_dir, 'meta.csv and sNNNN/ct.nii.gz')
  places = [p for p in files.walk(folder) if re.fullmatch(r's\d{4}', p.name) and p.is_dir()]
  if not any('ct' in _nifti(place) for place in places):
    raise SourceError(f'{folder}: no sNNNN/ct.nii.gz in it; unpack Totalsegmentator_dataset.zip')
  table = places[0].parent / 'meta.csv'
  splits = _read_splits(table)
  held = {place: _nifti(place / 'segmentations') for place in places}
  parts_of = _parts_of(held)
  cases = []
  for place, masks in held.items():
    scan = _nifti(place).get('ct')
    organs = {
      label: [masks[file] for file in parts]
      for label, parts in parts_of.items()
      if all(file in masks for file in parts)
    }
    named_split = splits.get(place.name, '')
    if scan is None:
      load = functools.partial(files.fail, f'{place}: no ct.nii.gz; unpack it again')
    elif not organs:
      problem = f'{place}: no segmentations/ with masks of the template; unpack it again'
      load = functools.partial(files.fail, problem)
    elif named_split not in _SPLITS:
      problem = f'{scan}: meta.csv gives {place.name} no split (train, val or test)'
      load = functools.partial(files.fail, problem)
    else:
      load = functools.partial(_load, scan, organs)
    split = _SPLITS.get(named_split, 'train')
    cases.append(Case('totalsegmentator', place.name, split, in_template_order(organs), load))
  if missing := sorted(splits.keys() - {place.name for place in places}):
    files.note(
      f'totalsegmentator: scans of {table} that are not there: {len(missing)}, first {missing[0]}'
    )
  _tell_incomplete(held, parts_of)
  return cases


def _parts_of(held: Mapping[pathlib.Path, Collection[str]]) -> dict[str, tuple[str, ...]]:
  """Class -> names of its mask files, with the cysts where any scan has them."""
  known = {file for masks in held.values() for file in masks}
  more = {label: (file,) for label, file in _PARTS.items() if file in known}
  return {label: (*parts, *more.get(label, ())) for label, parts in _FILES.items()}


def _tell_incomplete(
  held: Mapping[pathlib.Path, Collection[str]], parts_of: Mapping[str, Sequence[str]]
) -> None:
  """Notes classes that scans with other masks lack; a scan without any fails, and says so."""
  known = {file for parts in parts_of.values() for file in parts}
  scans = {place: masks for place, masks in held.items() if not known.isdisjoint(masks)}
  classes: dict[tuple[pathlib.Path, ...], list[str]] = {}
  for label, parts in parts_of.items():
    lacking = tuple(place for place, masks in scans.items() if not set(parts) <= set(masks))
    classes.setdefault(lacking, []).append(label)
  for lacking, labels in classes.items():
    told = f'totalsegmentator: {", ".join(map(repr, labels))}'
    if lacking and len(lacking) < len(scans):
      files.note(
        f'{told}: masks are missing in {len(lacking)} of {len(scans)} scans, first {lacking[0]}; '
        'not labelled there: if the download was cut short, unpack it again'
      )
    elif lacking:  # version 1 has no prostate and no spinal cord
      files.note(f'{told}: masks are missing in every scan; not labelled')


def _nifti(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name without its ending -> NIfTI file; links to nothing too: reading them fails, and is told.

  NOTE: by their names alone; to look into each of 140,000 masks takes long on a network disk.
  """
  entries = files.entries(folder) if os.path.isdir(folder) else []
  names = {path: inventory.stem(path.name) for path in entries}
  return {stem.casefold(): path for path, stem in names.items() if stem != path.name}


def _read_splits(path: pathlib.Path) -> dict[str, str]:
  if not path.is_file():
    raise SourceError(f'{path}: no such file; it comes with the download and tells the splits')
  columns, rows = text_files.read_csv(path)
  if not rows or not {'image_id', 'split'} <= set(columns):
    raise SourceError(f'{path}: no columns image_id and split, separated by semicolons')
  return {row['image_id']: row['split'] for row in rows}


@loader('_load')
def _load(scan: pathlib.Path, organs: dict[str, list[pathlib.Path]]) -> Scan:
  image = volume.read_image(scan)
  codes = np.zeros(image.array.shape, np.uint8)
  for name, paths in organs.items():
    for path in paths:
      mask = volume.read_labels(path)
      files.check_grid(path, mask.geometry, scan, image.geometry)
      values = np.unique(mask.array)
      if not set(values.tolist()) <= {0, 1}:
        raise SourceError(f'{path}: values {values.tolist()}; a mask holds 0 and 1')
      codes[mask.array > 0] = TEMPLATE.get(name).index
  return Scan(image.array, codes, image.geometry)


TOTALSEGMENTATOR = Source(
  name='totalsegmentator',
  description='Whole body from routine work, 117 structures; those of the template are used.',
  licence='CC BY 4.0',
  citation=(
    'J. Wasserthal et al., "TotalSegmentator: Robust segmentation of 104 anatomic structures in CT '
    'images," Radiology: Artificial Intelligence 5(5), 2023, doi.org/10.5281/zenodo.6802613'
  ),
  cases=totalsegmentator_cases,
  expected=1228,
  classes=in_template_order(_FILES),
)
