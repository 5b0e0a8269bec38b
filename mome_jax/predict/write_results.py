"""What prediction writes for a scan: labels, legend, masks, and what other modules draw or make."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.ct import volume
from mome_jax.errors import UserError
from mome_jax.inference.router_maps import RoutingMaps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures import overlay
from mome_jax.pictures.colours import palette
from mome_jax.predict import dicom_seg, html_viewer, output_names
from mome_jax.predict.class_statistics import statistics
from mome_jax.predict.find_scans import LoadedScan
from mome_jax.predict.request import Options, Target

__all__ = ['Options', 'SegmentedScan', 'Target', 'not_written', 'optional', 'write_scan']


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedScan:
  """What is known of a scan that was segmented.

  Attributes:
    name: NAME in the file names.
    scan: the CT.
    segmentation: of the targets, in their order.
    targets: K.
    routing: for the page, or None.
  """

  name: str
  scan: LoadedScan
  segmentation: Segmentation
  targets: Sequence[Target]
  routing: RoutingMaps | None = None


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
  segmented: SegmentedScan,
  *,
  options: Options,
  origin: Mapping[str, Any],
  missing: dict[str, str],
) -> list[dict[str, Any]]:
  """Writes the results of one scan; one class at a time, so that many classes fit into memory.

  Args:
    folder: to write into.
    segmented: the scan.
    options: what to write besides labels and legend.
    origin: further fields of the legend: the scan, the model, warnings.
    missing: name -> reason of what is not to be tried; gets what could not be written.

  Returns:
    The legend's rows.

  Raises:
    OSError: if labels or legend cannot be written.
  """
  name, ct, segmentation = segmented.name, segmented.scan.volume, segmented.segmentation
  _write_labels(folder / f'{name}_seg.nii.gz', segmented)
  rows = statistics(ct, segmentation, segmented.targets)
  present = [row['name'] for row in rows if row['present']]
  colours = palette([target.name for target in segmented.targets])

  def extra(end: str, write: Callable, *arguments: Any, **keywords: Any) -> None:
    path = folder / f'{name}_{end}'
    if path.name not in missing:
      with optional(path, missing):
        write(path, *arguments, **keywords)

  if options.masks:
    extra('masks', _write_masks, segmented)
  if options.dicom_seg and present:
    shown = {name: colours[name] for name in present}
    extra('seg.dcm', dicom_seg.write, segmented.scan.series, segmentation, shown)
  if options.preview:
    views = {name: segmentation.view(name) for name in present}
    layers = overlay.Layers(views, colours=colours, labelled=segmentation.winner > 0)
    extra('preview.png', overlay.overlay, ct.array, ct.spacing, layers, name)
  legend = {**origin, 'warnings': [*origin['warnings'], *not_written(missing)]}
  if options.report:
    page = {'title': name, 'origin': legend, 'routing': segmented.routing}
    extra('report.html', html_viewer.write, ct, segmentation, rows, **page)
  legend['warnings'] = [*origin['warnings'], *not_written(missing)]
  text = json.dumps({**legend, 'labels': rows}, indent=2) + '\n'
  (folder / f'{name}_seg.json').write_text(text)
  return rows


def not_written(missing: Mapping[str, str]) -> list[str]:
  """A sentence for each output that could not be written."""
  return [f'{name} is not written: {reason}' for name, reason in missing.items()]


def _write_labels(path: pathlib.Path, segmented: SegmentedScan) -> None:
  values = [0, *(target.label for target in segmented.targets)]
  dtype = np.min_scalar_type(max(values))  # uint16 with more than 56 prompts outside the template
  labels = np.array(values, dtype)[segmented.segmentation.winner]
  volume.write_nifti(path, labels, segmented.scan.volume.geometry, dtype)


def _write_masks(folder: pathlib.Path, segmented: SegmentedScan) -> None:
  folder.mkdir()
  for target in segmented.targets:
    mask = segmented.segmentation.mask(target.name)
    path = folder / output_names.of_class(target)
    volume.write_nifti(path, mask, segmented.scan.volume.geometry, np.uint8)
