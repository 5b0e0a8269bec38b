"""Results of an earlier run: which of them the request of today would make again."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mome_jax.errors import few
from mome_jax.predict import formats, output_names, provenance, workers, write_results
from mome_jax.predict.find_scans import ScanFiles
from mome_jax.predict.request import PredictError, Target
from mome_jax.predict.result import Result
from mome_jax.predict.workers import Job


def refuse(output: pathlib.Path, scans: Sequence[ScanFiles]) -> None:
  """Raises PredictError if the folder holds anything that would be written for the scans."""
  present = [
    name for scan in scans for name in formats.possible(scan.name) if (output / name).exists()
  ]
  if present:
    raise PredictError(
      f'{output}/{few(present, 1)}: results of an earlier run; pass --overwrite or --skip-done, '
      'or change --output'
    )


def results(output: pathlib.Path, scans: Sequence[ScanFiles], job: Job) -> dict[str, Result]:
  """What an earlier run has left of the scans, by name.

  'ok' is a result of the same request that lacks files that are asked for now. One that was made
  otherwise is a failure, not passed off as done.

  Args:
    output: folder of the results.
    scans: asked for now.
    job: what would be done to them.
  """
  kept = {}
  for scan in scans:
    legend = output / f'{scan.name}_seg.json'
    if scan.problem or not legend.exists():
      continue
    try:
      now = {'scan': provenance.of_scan(scan), **job.model.provenance}
    except Exception:  # of many kinds; reading it will say why
      continue
    try:
      written = json.loads(legend.read_text(encoding='utf-8'))
      problem = _differences(written, now, job.model.targets)
      if not problem:
        kept[scan.name] = _kept(output, scan, written, job)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      problem = f'cannot be read as a legend ({error!r})'
    if problem:
      message = f'{legend}: {problem}; pass --overwrite, or change --output'
      kept[scan.name] = Result(scan.name, scan.input, 'failed', message=message)
  return kept


def _differences(
  legend: Mapping[str, Any], now: Mapping[str, Any], targets: Sequence[Target]
) -> str:
  """How the results that a legend describes were made otherwise; empty if they were not."""
  rows = legend['labels']
  if 'request' not in legend:
    return 'made by an earlier version, which did not record from what'
  if any('verdict' not in row for row in rows):
    return 'made by an earlier version, in which prompts meant something else'
  prompts = json.loads(json.dumps([dataclasses.asdict(target) for target in targets]))
  for prompt in prompts:
    del prompt['nearest']  # follows from the others; earlier versions did not write it
  if [{key: row[key] for key in prompts[0]} for row in rows] != prompts:
    now = {key: value for key, value in now.items() if key != 'text'}
    others = ['other prompts', *provenance.differences(legend['request'], now)]
  else:
    others = provenance.differences(legend['request'], now)
  return f'made with {", ".join(others)}' if others else ''


def _kept(output: pathlib.Path, scan: ScanFiles, legend: Mapping[str, Any], job: Job) -> Result:
  """The result of an earlier run with the same request."""
  rows = legend['labels']
  present = any(row['components'] for row in rows)
  names = formats.file_names(
    scan.name,
    job.request.options,
    present=present,
    overlapping=bool(job.model.segmenter.free),
  )
  absent = [name for name in names if not (output / name).exists()]
  single = formats.single(job.model.targets, job.request.options, job.model.segmenter.free)
  masks = output / f'{scan.name}_masks'
  if masks.exists() and any(not (masks / output_names.of_class(t)).exists() for t in single):
    absent.append(masks.name)
  missing = {name: job.impossible[name] for name in absent if name in job.impossible}
  notes = [*legend['warnings'], *write_results.not_written(missing)]
  notes += job.not_found(scan.input, rows)
  status = 'incomplete' if missing else 'skipped'
  if set(absent) - set(missing):
    status = 'ok'
  elif job.request.check_sides and legend['mirrored']:
    status = 'mirrored'
    notes.append(workers.mirrored_note(scan))
  if status == 'skipped' and job.request.check_sides and legend['mirrored'] is None:
    notes.append(workers.UNCHECKED)
  text = workers.joined(list(dict.fromkeys(notes)), scan.input)
  return Result(
    scan.name,
    scan.input,
    status,
    message=text,
    labels=rows,
    missing=missing,
    kept=True,
    series_uid=scan.series_uid,
  )
