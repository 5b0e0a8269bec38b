"""What prediction writes for a scan: labels, legend and volumes, preview, masks, probabilities."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import volume
from input_pipeline.ct.components import components
from mome_jax.errors import UserError
from mome_jax.inference.router_maps import RoutingMaps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.inference.slabs import Slab
from mome_jax.pictures import overlay
from mome_jax.pictures.colours import palette
from mome_jax.predict import dicom_seg, html_viewer
from mome_jax.predict.find_scans import Scan

FIRST_FREE_LABEL = 200  # of prompts outside the template
_LONGEST = 60  # characters of a class in a file name; four bytes each fit into 255
# Of probabilities: the float32 below 1 / 255, since 255 times the nearest one is above 1.
_SLOPE = float(np.nextafter(np.float32(1 / 255), np.float32(0)))


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

  Raises:
    OSError: if there is no room for them.
  """

  def __init__(self, folder: pathlib.Path, scan: volume.Volume, count: int):
    self._geometry = scan.geometry
    self._path = folder / 'probabilities.raw'
    shape = (count, *scan.array.shape)
    with self._path.open('wb') as file:  # a full disk shows now, not as a crash at some voxel
      os.posix_fallocate(file.fileno(), 0, math.prod(shape))
    self._maps = np.memmap(self._path, np.uint8, mode='r+', shape=shape)

  def add(self, slab: Slab) -> None:
    """Takes the logits of some planes."""
    for k, values in enumerate(self._maps):
      chance = 1 / (1 + np.exp(-np.clip(slab.logits(k), -30, 30)))
      values[slab.planes] = np.rint(255 * chance)

  def write(self, folder: pathlib.Path, targets: Sequence[Target]) -> None:
    """Writes one uint8 file a class, 255 for 1 (its header says so), and removes the raw one."""
    try:
      folder.mkdir()
      for target, values in zip(targets, self._maps, strict=True):
        path = folder / file_name(target)
        volume.write_nifti(path, np.asarray(values), self._geometry, np.uint8, slope=_SLOPE)
    finally:
      del self._maps
      self._path.unlink()


@contextlib.contextmanager
def optional(path: pathlib.Path, missing: dict[str, str]) -> Iterator[None]:
  """A block that writes something beside labels and legend, and may fail without costing them.

  Args:
    path: file or folder that it writes; removed after an error.
    missing: name -> reason; gets that of an error.
  """
  try:
    yield
  except Exception as error:  # of many libraries
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    reason = ' '.join(str(error).split())
    if isinstance(error, OSError):
      reason = error.strerror or reason
    elif not isinstance(error, UserError):
      reason = f'{type(error).__name__}: {reason}'
    missing[path.name] = reason


def write_scan(
  folder: pathlib.Path,
  name: str,
  scan: Scan,
  segmentation: Segmentation,
  targets: Sequence[Target],
  *,
  options: Options,
  origin: Mapping,
  missing: dict[str, str],
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
    missing: name -> reason of what is not to be tried; gets what could not be written.
    routing: for the page.

  Returns:
    The legend's rows.
  """
  geometry = scan.volume.geometry
  values = [0, *(target.label for target in targets)]
  dtype = np.min_scalar_type(max(values))  # uint16 with more than 56 prompts outside the template
  labels = np.array(values, dtype)[segmentation.winner]
  volume.write_nifti(folder / f'{name}_seg.nii.gz', labels, geometry, dtype)
  del labels
  ct, rows = scan.volume, statistics(scan.volume, segmentation, targets)
  present = [row['name'] for row in rows if row['present']]
  colours = palette([target.name for target in targets])

  def extra(end, write, *arguments, **keywords):
    path = folder / f'{name}_{end}'
    if path.name not in missing:
      with optional(path, missing):
        write(path, *arguments, **keywords)

  if options.masks:
    extra('masks', _write_masks, geometry, segmentation, targets)
  if options.dicom_seg and present:
    shown = {name: colours[name] for name in present}
    extra('seg.dcm', dicom_seg.write, scan.series, segmentation, shown)
  if options.preview:
    views = {name: segmentation.view(name) for name in present}
    layers = overlay.Layers(views, colours=colours, labelled=segmentation.winner > 0)
    extra('preview.png', overlay.overlay, ct.array, ct.spacing, layers, name)
  told = {**origin, 'warnings': [*origin['warnings'], *not_written(missing)]}
  if options.report:
    page = {'title': name, 'origin': told, 'routing': routing}
    extra('report.html', html_viewer.write, ct, segmentation, rows, **page)
  told['warnings'] = [*origin['warnings'], *not_written(missing)]
  text = json.dumps({**told, 'labels': rows}, indent=2) + '\n'
  (folder / f'{name}_seg.json').write_text(text)
  return rows


def not_written(missing: Mapping[str, str]) -> list[str]:
  """A sentence for each output that could not be written."""
  return [f'{name} is not written: {reason}' for name, reason in missing.items()]


def _write_masks(
  folder: pathlib.Path,
  geometry: volume.Geometry,
  segmentation: Segmentation,
  targets: Sequence[Target],
) -> None:
  folder.mkdir()
  for target in targets:
    mask = segmentation.mask(target.name)
    volume.write_nifti(folder / file_name(target), mask, geometry, np.uint8)


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


def is_mirrored(segmentation: Segmentation) -> bool | None:
  """Whether liver lies left of spleen; None unless both are there."""
  right = []
  for name in ('liver', 'spleen'):
    box = segmentation.boxes.get(name)
    if box is None:
      return None
    columns = segmentation.mask(name, box).sum((1, 2))
    right.append(np.average(np.arange(box[0].start, box[0].stop), weights=columns))
  return bool(right[0] < right[1])


def file_name(target: Target) -> str:
  """The file of a class, which no other class has, on disks that ignore case either.

  A name of plain Latin words stands for itself; any other one, and free text, after its label.
  """
  word = re.sub(r'\W+', '_', unicodedata.normalize('NFKC', target.name)).strip('_')
  plain = re.fullmatch(r'[a-z][a-z0-9]*( [a-z0-9]+)*', target.name) and len(word) <= _LONGEST
  if not plain or target.label >= FIRST_FREE_LABEL:
    word = f'{target.label}_{word[:_LONGEST]}'.rstrip('_')
  return f'{word}.nii.gz'
