"""What prediction writes for a scan: labels, legend and volumes, preview, masks, probabilities."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import volume
from input_pipeline.anatomy import TEMPLATE, Template
from mome_jax import report, viewer
from mome_jax.explain import RoutingMaps
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
  """What is written besides labels and legend: one file a class of each kind, preview, page."""

  masks: bool = False
  probabilities: bool = False
  preview: bool = True
  report: bool = False


DEFAULTS = Options()


def make_targets(prompts: Sequence[str], template: Template = TEMPLATE) -> list[Target]:
  """What some prompts ask for.

  The name of a class, in any case, stands for the sentence it was trained with, and keeps its
  label. Any other text, synonyms too, is for the text encoder alone and gets a label from 200 on.

  Args:
    prompts: K texts.
    template: of the class names.

  Raises:
    ValueError: if two ask for the same, or there are more texts than labels.
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
    raise ValueError(f'prompts {", ".join(twice)}: asked for twice; name each once')
  if free > 256:
    raise ValueError(
      f'{free - FIRST_FREE_LABEL} prompts outside the template, labels 200..255 hold 56; ask for '
      'fewer at a time'
    )
  return targets


@contextlib.contextmanager
def staged(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder whose files move into `output` when the block is left without an error.

  A file of the same name is replaced. After an error nothing of the block is there.
  """
  with tempfile.TemporaryDirectory(dir=output, prefix='.incomplete-') as name:
    folder = pathlib.Path(name)
    yield folder
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    done = []
    try:
      for path in files:
        place = output / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        done.append(place)
    except OSError:
      for place in done:
        place.unlink()
      raise


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
    self._maps = np.memmap(self._path, np.float16, mode='w+', shape=shape)

  def add(self, planes: slice, logits: np.ndarray) -> None:
    """Takes (d, H, W, K) logits of some planes."""
    self._maps[:, planes] = np.moveaxis(1 / (1 + np.exp(-np.clip(logits, -30, 30))), -1, 0)

  def write(self, folder: pathlib.Path, targets: Sequence[Target]) -> None:
    """Writes one float32 file a class and removes the temporary one."""
    folder.mkdir()
    for target, values in zip(targets, self._maps, strict=True):
      path = folder / f'{_slug(target)}.nii.gz'
      volume.write_nifti(path, np.asarray(values, np.float32), self._geometry, np.float32)
    del self._maps
    self._path.unlink()


def write_scan(
  folder: pathlib.Path,
  name: str,
  scan: volume.Volume,
  segmentation: Segmentation,
  targets: Sequence[Target],
  *,
  options: Options,
  origin: Mapping,
  routing: RoutingMaps | None = None,
) -> None:
  """Writes the results of one scan.

  Args:
    folder: to write into.
    name: NAME in the file names.
    scan: the CT.
    segmentation: of the targets, in their order.
    targets: K.
    options: what to write besides labels and legend.
    origin: further fields of the legend: the scan, the model, warnings.
    routing: for the page.
  """
  labels = np.array([0, *(target.label for target in targets)], np.uint8)[segmentation.winner]
  volume.write_nifti(folder / f'{name}_seg.nii.gz', labels, scan.geometry, np.uint8)
  masks = {target.name: segmentation.mask(target.name) for target in targets}
  if options.masks:
    (folder / f'{name}_masks').mkdir()
    for target in targets:
      path = folder / f'{name}_masks' / f'{_slug(target)}.nii.gz'
      volume.write_nifti(path, masks[target.name], scan.geometry, np.uint8)
  millilitres = float(np.prod(scan.spacing)) / 1000
  legend = [
    {
      **dataclasses.asdict(target),
      'volume_ml': round(float(masks[target.name].sum()) * millilitres, 3),
      'present': bool(masks[target.name].any()),
    }
    for target in targets
  ]
  text = json.dumps({**origin, 'labels': legend}, indent=2) + '\n'
  (folder / f'{name}_seg.json').write_text(text)
  if options.preview:
    present = {key: mask for key, mask in masks.items() if mask.any()}
    path = folder / f'{name}_preview.png'
    report.overlay(path, scan.array, present, scan.spacing, title=name)
  if options.report:
    path = folder / f'{name}_report.html'
    viewer.write(path, scan, segmentation, legend, title=name, origin=origin, routing=routing)


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
