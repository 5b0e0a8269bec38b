"""Results in the form of TotalSegmentator: a folder of masks with its names, and its statistics."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import volume
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import output_names
from mome_jax.predict.request import Target

# What it calls classes that are not named after its rule: the side at the end. Names of its tasks
# `total`, `head_glands_cavities`, `craniofacial_structures`, `liver_vessels`, `lung_nodules`. Whole
# lungs, which it has as lobes, follow the rule; so do classes that it has not at all.
_NAMES = {
  'postcava': 'inferior_vena_cava',
  'portal and splenic vein': 'portal_vein_and_splenic_vein',
  'intestine': 'small_bowel',
  'bladder': 'urinary_bladder',
  'hepatic vessel': 'liver_vessels',
  'left parotid': 'parotid_gland_left',
  'right parotid': 'parotid_gland_right',
}
_SIDES = 'left', 'right'


def file_name(target: Target) -> str:
  """'kidney_left.nii.gz' of the left kidney; free text as in `output_names.of_class`."""
  name = _NAMES.get(target.name)
  if name is None:
    first, _, rest = target.name.partition(' ')
    if target.taken_as == 'free' or first not in _SIDES or not rest:
      return output_names.of_class(target)
    name = f'{rest} {first}'.replace(' ', '_')
  return f'{name}.nii.gz'


def write(
  folder: pathlib.Path,
  segmentation: Segmentation,
  targets: Sequence[Target],
  rows: Sequence[Mapping[str, Any]],
  geometry: volume.Geometry,
) -> None:
  """Writes a mask a class, empty ones too, and `statistics.json`: volume in mm3, mean HU.

  Args:
    folder: created.
    segmentation: of the targets.
    targets: K.
    rows: K of the legend.
    geometry: of the scan.
  """
  folder.mkdir()
  for target in targets:  # one at a time, so that many classes fit into memory
    mask = segmentation.mask(target.name)
    volume.write_nifti(folder / file_name(target), mask, geometry, np.uint8)
  text = json.dumps(dict(_statistics(targets, rows)), indent=4) + '\n'
  (folder / 'statistics.json').write_text(text, encoding='utf-8')


def _statistics(
  targets: Sequence[Target], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, float]]]:
  for target, row in zip(targets, rows, strict=True):
    values = {'volume': round(row['volume_ml'] * 1000, 3), 'intensity': row['mean_hu'] or 0.0}
    yield file_name(target).removesuffix('.nii.gz'), values
