"""What prediction writes for a scan: labels, legend, and the formats asked for."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from input_pipeline.ct import volume
from mome_jax.errors import reason
from mome_jax.plausibility.judge import Judgement
from mome_jax.predict import formats, output_names
from mome_jax.predict.class_statistics import statistics
from mome_jax.predict.find_scans import ScanFiles
from mome_jax.predict.formats import SegmentedScan
from mome_jax.predict.request import Options

if TYPE_CHECKING:
  from mome_jax.predict.prompted_model import PromptedModel


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
    told = error.strerror if isinstance(error, OSError) else None
    missing[path.name] = told or reason(error)


def write_scan(
  folder: pathlib.Path,
  segmented: SegmentedScan,
  *,
  options: Options,
  origin: Mapping[str, Any],
  missing: dict[str, str],
) -> list[dict[str, Any]]:
  """Writes the results of one scan.

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
  name = segmented.name
  labels = segmented.segmentation.label_map({t.name: t.label for t in segmented.targets})
  geometry = segmented.scan.volume.geometry
  volume.write_nifti(folder / f'{name}_seg.nii.gz', labels, geometry, labels.dtype)
  rows = [dict(row) for row in segmented.rows or measure(segmented)]
  segmented = dataclasses.replace(segmented, rows=rows, labels=labels, options=options)
  for kind in formats.asked(options, overlapping=bool(segmented.segmentation.free)).values():
    path = folder / f'{name}_{kind.end}'
    if path.name in missing or (kind.needs_voxels and not segmented.present):
      continue
    with optional(path, missing):
      kind.write(path, dataclasses.replace(segmented, origin=_legend(origin, missing)))
  single = {target.name: output_names.of_class(target) for target in segmented.single}
  for row in rows:
    masks = f'{name}_masks'
    written = row['name'] in single and masks not in missing
    row['mask'] = f'{masks}/{single[row["name"]]}' if written else None
  text = json.dumps({**_legend(origin, missing), 'labels': rows}, indent=2) + '\n'
  (folder / f'{name}_seg.json').write_text(text, encoding='utf-8')
  return rows


def measure(segmented: SegmentedScan) -> list[dict[str, Any]]:
  """The rows of a legend but for the files of their masks; see `class_statistics.statistics`."""
  rows = statistics(
    segmented.scan.volume, segmented.segmentation, segmented.targets, segmented.judgement
  )
  unsure = segmented.unsure
  return [{**row, 'unsure': None if row['removed_ml'] else unsure.get(row['name'])} for row in rows]


def origin_of(
  scan: ScanFiles,
  digest: str,
  model: 'PromptedModel',
  judgement: Judgement | None,
  *,
  mirrored: bool | None,
  warnings: Sequence[str],
) -> dict[str, Any]:
  """The fields of a legend beside its rows: the scan, the model, what was odd.

  Args:
    scan: that was segmented.
    digest: `provenance.of_scan` of it.
    model: that has read the prompts.
    judgement: of the masks, or None.
    mirrored: whether liver and spleen have changed sides, where that is known.
    warnings: what the user should know.
  """
  return {
    'input': scan.input,
    'series_uid': scan.series_uid,
    **model.origin,
    'warnings': warnings,
    'mirrored': mirrored,
    'foreign': None if judgement is None else judgement.foreign,
    'request': {'scan': digest, **model.provenance},
  }


def _legend(origin: Mapping[str, Any], missing: Mapping[str, str]) -> dict[str, Any]:
  return {**origin, 'warnings': [*origin['warnings'], *not_written(missing)]}


def not_written(missing: Mapping[str, str]) -> list[str]:
  """A sentence for each output that could not be written."""
  return [f'{name} is not written: {reason}' for name, reason in missing.items()]
