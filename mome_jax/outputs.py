"""What prediction writes for a scan: labels, legend and volumes, preview, masks, probabilities."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import volume
from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.components import components
from mome_jax import dicom_seg, inference, report, viewer
from mome_jax.errors import UserError
from mome_jax.explain import RoutingMaps
from mome_jax.scans import Scan
from mome_jax.segment import Segmentation

FIRST_FREE_LABEL = 200  # of prompts outside the template


@dataclasses.dataclass(frozen=True)
class Target:
  """What a prompt asks for.

  Attributes:
    label: in the written label map.
    name: lower case; the canonical name for a class of the template.
    prompt: for the text encoder.
  """

  label: int
  name: str
  prompt: str


@dataclasses.dataclass(frozen=True)
class Options:
  """What is written besides labels and legend.

  Attributes:
    masks: one binary file a class.
    probabilities: one map a class.
    preview: a picture of three planes.
    report: a page to look at it.
    dicom_seg: a DICOM SEG object, for DICOM input.
  """

  masks: bool = False
  probabilities: bool = False
  preview: bool = True
  report: bool = False
  dicom_seg: bool = False


DEFAULTS = Options()


def make_targets(prompts: Sequence[str], template: Template = TEMPLATE) -> list[Target]:
  """What some prompts ask for.

  The name of a class, in any case, stands for the sentence it was trained with, and keeps its
  label. Any other text, synonyms too, is for the text encoder alone and gets a label from 200 on.

  Args:
    prompts: K texts.
    template: of the class names.

  Raises:
    UserError: if two ask for the same, or there are more texts than labels.
  """
  targets, free = [], FIRST_FREE_LABEL
  for text in prompts:
    name = ' '.join(text.casefold().split())
    if name in template.names():
      structure = template.get(name)
      targets.append(Target(structure.index, name, structure.prompt))
    else:
      targets.append(Target(free, name, ' '.join(text.split())))
      free += 1
  names = [target.name for target in targets]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise UserError(f'prompts {", ".join(twice)}: asked for twice; name each once')
  if free > 1 << 16:
    raise UserError(
      f'{free - FIRST_FREE_LABEL} prompts outside the template have no label below 65536; ask for '
      'fewer at a time'
    )
  return targets


def wanted(name: str, options: Options, *, present: bool = True) -> list[str]:
  """Names of what is written for a scan.

  Args:
    name: NAME in them.
    options: what is written besides labels and legend.
    present: whether anything was found; a DICOM SEG of nothing is not written.
  """
  ends = {
    'seg.json': True,
    'seg.nii.gz': True,
    'seg.dcm': options.dicom_seg and present,
    'preview.png': options.preview,
    'report.html': options.report,
    'masks': options.masks,
    'probabilities': options.probabilities,
  }
  return [f'{name}_{end}' for end, needed in ends.items() if needed]


def names_of(name: str) -> list[str]:
  """Everything that a prediction can write for a scan."""
  return wanted(name, Options(True, True, True, True, True))


class ProbabilityMaps:
  """Probabilities of K classes on the scan's grid, kept on disk while they are made.

  Args:
    folder: for the temporary file.
    scan: gives the grid.
    count: K.
  """

  def __init__(self, folder: pathlib.Path, scan: volume.Volume, count: int):
    self._geometry = scan.geometry
    self._path = folder / 'probabilities.raw'
    shape = (count, *scan.array.shape)
    self._maps = np.memmap(self._path, np.uint8, mode='w+', shape=shape)

  def add(self, slab: inference.Slab) -> None:
    """Takes the logits of some planes."""
    for k, values in enumerate(self._maps):
      chance = 1 / (1 + np.exp(-np.clip(slab.logits(k), -30, 30)))
      values[slab.planes] = np.rint(255 * chance)

  def write(self, folder: pathlib.Path, targets: Sequence[Target]) -> None:
    """Writes one uint8 file a class, 255 for 1 (its header says so), and removes the raw one."""
    folder.mkdir()
    for target, values in zip(targets, self._maps, strict=True):
      path = folder / f'{_slug(target)}.nii.gz'
      volume.write_nifti(path, np.asarray(values), self._geometry, np.uint8, slope=1 / 255)
    del self._maps
    self._path.unlink()


def write_scan(
  folder: pathlib.Path,
  name: str,
  scan: Scan,
  segmentation: Segmentation,
  targets: Sequence[Target],
  *,
  options: Options,
  origin: Mapping,
  routing: RoutingMaps | None = None,
) -> list[dict]:
  """Writes the results of one scan; one class at a time, so that many classes fit into memory.

  Args:
    folder: to write into.
    name: NAME in the file names.
    scan: the CT.
    segmentation: of the targets, in their order.
    targets: K.
    options: what to write besides labels and legend.
    origin: further fields of the legend: the scan, the model, warnings.
    routing: for the page.

  Returns:
    The legend's rows.

  Raises:
    DicomSegError: if a DICOM SEG is wanted and cannot be made.
  """
  ct, geometry = scan.volume, scan.volume.geometry
  values = [0, *(target.label for target in targets)]
  dtype = np.min_scalar_type(max(values))  # uint16 with more than 56 prompts outside the template
  labels = np.array(values, dtype)[segmentation.winner]
  volume.write_nifti(folder / f'{name}_seg.nii.gz', labels, geometry, dtype)
  del labels
  if options.masks:
    (folder / f'{name}_masks').mkdir()
    for target in targets:
      path = folder / f'{name}_masks' / f'{_slug(target)}.nii.gz'
      volume.write_nifti(path, segmentation.mask(target.name), geometry, np.uint8)
  rows = statistics(ct, segmentation, targets)
  present = [target for target, row in zip(targets, rows, strict=True) if row['present']]
  if options.dicom_seg and present:
    path = folder / f'{name}_seg.dcm'
    dicom_seg.write(path, scan.series, segmentation, [target.name for target in present])
  text = json.dumps({**origin, 'labels': rows}, indent=2) + '\n'
  (folder / f'{name}_seg.json').write_text(text)
  if options.preview:
    report.overlay(
      folder / f'{name}_preview.png',
      ct.array,
      {target.name: segmentation.view(target.name) for target in present},
      ct.spacing,
      labelled=segmentation.winner > 0,
      title=name,
    )
  if options.report:
    path = folder / f'{name}_report.html'
    viewer.write(path, ct, segmentation, rows, title=name, origin=origin, routing=routing)
  return rows


def statistics(
  scan: volume.Volume, segmentation: Segmentation, targets: Sequence[Target]
) -> list[dict]:
  """What was found of each target.

  Returns:
    K dicts: `label`, `name`, `prompt`; `volume_ml`, structures inside it included; `mean_hu` of its
    voxels, None without any; `present`; `components`, the number of 26-connected ones.
  """
  millilitres = abs(float(np.linalg.det(scan.geometry.affine[:3, :3]))) / 1000
  if scan.geometry.header is not None:  # its spacing may have been assumed
    millilitres = float(np.prod(scan.spacing)) / 1000
  rows = []
  for target, box in zip(targets, segmentation.boxes.values(), strict=True):
    row = {**dataclasses.asdict(target), 'volume_ml': 0.0, 'present': False, 'mean_hu': None}
    row['components'] = 0
    if box is not None:
      mask = segmentation.mask(target.name, box)
      row['volume_ml'] = round(float(np.count_nonzero(mask)) * millilitres, 3)
      row['present'] = True
      row['mean_hu'] = round(float(scan.array[box][mask].mean(dtype=np.float64)), 1)
      _, row['components'] = components(mask)
    rows.append(row)
  return rows


def is_mirrored(segmentation: Segmentation) -> bool:
  """Whether liver lies left of spleen; False unless both are there."""
  right = []
  for name in ('liver', 'spleen'):
    columns = segmentation.mask(name).sum((1, 2))
    if not columns.any():
      return False
    right.append(np.average(np.arange(len(columns)), weights=columns))
  return bool(right[0] < right[1])


def _slug(target: Target) -> str:
  """A file name for a class; free text keeps its label, two texts may look alike as names."""
  word = re.sub(r'[^a-z0-9]+', '_', target.name).strip('_')[:60]
  return word if target.label < FIRST_FREE_LABEL else f'{target.label}_{word}'.rstrip('_')
