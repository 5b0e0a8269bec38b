"""TotalSegmentator: a mask file for each structure; those that the template has are used."""

import functools
import pathlib

import numpy as np

from input_pipeline import text_files, volume
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.sources import files
from input_pipeline.sources.base import Case, Scan, Source, SourceError, in_template_order

# Class -> its mask files, of which it is the union. NOTE: its femurs are whole bones, no heads.
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
_SPLITS = {'train': 'train', 'val': 'validation', 'test': 'test'}


def totalsegmentator_cases(manual_dir: str | None) -> list[Case]:
  """All scans; a class is supervised where all its mask files are there, empty ones included.

  Args:
    manual_dir: folder that holds `sNNNN/{ct.nii.gz,segmentations/}` and `meta.csv`.

  Raises:
    SourceError: if there are no scans, or `meta.csv` does not tell their split.
  """
  folder = files.folder_of('totalsegmentator', manual_dir, 'meta.csv and sNNNN/ct.nii.gz')
  scans = sorted(folder.glob('**/s[0-9][0-9][0-9][0-9]/ct.nii.gz'))
  if not scans:
    raise SourceError(f'{folder}: no sNNNN/ct.nii.gz in it; unpack Totalsegmentator_dataset.zip')
  splits = _read_splits(scans[0].parent.parent / 'meta.csv')
  cases = []
  for scan in scans:
    name = scan.parent.name
    if splits.get(name) not in _SPLITS:
      raise SourceError(f'{scan}: meta.csv gives {name} no split (train, val or test)')
    masks = {p.name: p for p in files.nifti_files(scan.parent / 'segmentations')}
    wanted = {
      label: [masks[f'{file}.nii.gz'] for file in parts]
      for label, parts in _FILES.items()
      if all(f'{file}.nii.gz' in masks for file in parts)
    }
    load = functools.partial(_load, scan, wanted)
    supervised = in_template_order(wanted)
    cases.append(Case('totalsegmentator', name, _SPLITS[splits[name]], supervised, load))
  return cases


def _read_splits(path: pathlib.Path) -> dict[str, str]:
  if not path.is_file():
    raise SourceError(f'{path}: no such file; it comes with the download and tells the splits')
  columns, rows = text_files.read_csv(path)
  if not rows or not {'image_id', 'split'} <= set(columns):
    raise SourceError(f'{path}: no columns image_id and split, separated by semicolons')
  return {row['image_id']: row['split'] for row in rows}


def _load(scan: pathlib.Path, wanted: dict[str, list[pathlib.Path]]) -> Scan:
  image = volume.read_image(scan)
  codes = np.zeros(image.array.shape, np.uint8)
  for name, paths in wanted.items():
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
