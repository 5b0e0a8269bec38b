"""Results of an earlier run: which of them the request of today would make again."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mome_jax.predict import find_scans, provenance, workers, write_results
from mome_jax.predict.workers import Job, Result


def results(output: pathlib.Path, cases: Sequence[find_scans.Case], job: Job) -> dict[str, Result]:
  """What an earlier run has left of the cases, by name.

  'ok' is a result of the same request that lacks files that are asked for now. One that was made
  otherwise is a failure, not passed off as done.

  Args:
    output: folder of the results.
    cases: asked for now.
    job: what would be done to them.
  """
  found = {}
  for case in cases:
    legend = output / f'{case.name}_seg.json'
    if case.problem or not legend.exists():
      continue
    try:
      now = {'scan': provenance.of_scan(case), **job.request}
    except Exception:  # of many kinds; reading it will say why
      continue
    try:
      written = json.loads(legend.read_text())
      problem = _differences(written, now, job.targets)
      if not problem:
        found[case.name] = _kept(output, case, written, job)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      problem = f'cannot be read as a legend ({error!r})'
    if problem:
      message = f'{legend}: {problem}; pass --overwrite, or change --output'
      found[case.name] = Result(case.name, case.input, 'failed', message=message)
  return found


def _differences(legend: Mapping[str, Any], now: Mapping, targets: Sequence) -> str:
  """How the results that a legend describes were made otherwise; empty if they were not."""
  rows = legend['labels']
  if 'request' not in legend:
    return 'made by an earlier version, which did not record from what'
  prompts = [dataclasses.asdict(target) for target in targets]
  if [{key: row[key] for key in prompts[0]} for row in rows] != prompts:
    now = {key: value for key, value in now.items() if key != 'text'}
    others = ['other prompts', *provenance.differences(legend['request'], now)]
  else:
    others = provenance.differences(legend['request'], now)
  return f'made with {", ".join(others)}' if others else ''


def _kept(
  output: pathlib.Path, case: find_scans.Case, legend: Mapping[str, Any], job: Job
) -> Result:
  """The result of an earlier run with the same request."""
  rows = legend['labels']
  names = write_results.wanted(case.name, job.options, present=any(row['present'] for row in rows))
  absent = [name for name in names if not (output / name).exists()]
  missing = {name: job.impossible[name] for name in absent if name in job.impossible}
  notes = [*legend['warnings'], *write_results.not_written(missing)]
  status = 'incomplete' if missing else 'skipped'
  if set(absent) - set(missing):
    status = 'ok'
  elif job.check_sides and legend['mirrored']:
    status = 'mirrored'
    notes.append(workers.mirrored_note(case))
  text = '; '.join(dict.fromkeys(notes))
  return Result(
    case.name, case.input, status, message=text, labels=rows, missing=missing, kept=True
  )
