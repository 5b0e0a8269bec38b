"""A source brought to what its download holds now, whole or not at all."""

import dataclasses
import functools
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from input_pipeline import bricks, errors, progress, remarks, sources
from input_pipeline.bricks import cutting, identity, records, staging, terms, writer
from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.patients import patient_groups
from input_pipeline.prepare import disk_space, prepared, request
from input_pipeline.prepare.prepared import PrepareError


def prepare(
  source: str,
  data_dir: str | os.PathLike,
  *,
  manual_dir: str | None = None,
  name: str | None = None,
  groups: str | None = None,
  spacing: Sequence[float] = (1.5, 1.5, 1.5),
  brick: int = 64,
  limit: int | None = None,
  overwrite: bool = False,
  folds: bool = False,
  beam: str | None = None,
) -> dict:
  """Brings `data_dir/name` to what the source holds now.

  A case that is prepared already, or that a killed run finished, is taken over if its files, label
  meanings, classes, split and settings are the same. A drawn split (`sources.Case.drawn`) stays as
  it was prepared first, whatever cases come or go. Where licence or citation alone differ, the
  metadata are written anew. The options are those of the command line, one to one, which is why
  they are so many.

  Args:
    source: a name of `sources.SOURCES`.
    data_dir: of all prepared sources, may be gs://; created where missing.
    manual_dir: folder the user downloaded, for sources that need one.
    name: of the prepared source; by default that of the source.
    groups: file of `patient_groups`; the cases of a group go to one split, which is held out as
      much as that of the group or what was drawn for any of them before.
    spacing: (3,) mm of the bricks.
    brick: edge of the bricks, voxels.
    limit: at most so many cases of each split; None is all.
    overwrite: replace what is there, though settings differ; every case is converted.
    folds: write every case of train and validation both for training and for scoring.
    beam: options of Apache Beam, which then converts the cases; None converts them here.

  Returns:
    settings, manual_dir and groups_file as absolute paths, new_classes (beyond the built-in
    template), cases per split, skipped (case, reason), warnings (case, message), assigned (with
    folds: source, case and split of each case that is there twice), drawn (case -> split of every
    case that was converted and whose split was ever drawn), patients (source, case, patient, of the
    cases in a group or whose source says it), records, bytes, seconds; and changes, which is not
    stored: how many cases were added, replaced, removed and kept.

  Raises:
    PrepareError: if it is there with other settings.
    StagingError: if another process is writing it.
    GroupsError: if the file of groups is none, or older than the scans.
    SourceError: if the source or its files are missing, or every case failed.
    DiskError: if the disk does not hold what is to be written.
  """
  declared = sources.get_source(source)
  template = declared.template(manual_dir)
  said: dict[str, Any] = declared.terms(manual_dir)
  declared = dataclasses.replace(declared, name=name or source, **said)
  mm = cutting.triple([float(number) for number in spacing])
  folder = epath.Path(data_dir) / declared.name
  settings = _settings(source, mm, brick, limit)
  staging.recover(folder.parent, folder.name)
  earlier = prepared.read(folder)
  if not overwrite:
    earlier.check(settings, groups)
  cases, same, patients = _list_cases(declared, source, manual_dir, groups)
  facts: dict[str, Any] = {
    'settings': settings,
    'new_classes': list(template.additions()),
    'groups': same.digest if same else None,
    'manual_dir': _absolute(manual_dir),
    'groups_file': _absolute(groups),
    'patients': patients,
  }
  origin = repr((source, facts['manual_dir'], facts['new_classes']))
  conversion = writer.Conversion(mm, brick, origin)
  asked = request.Request(
    settings, conversion, cases, facts['manual_dir'], patients, same, folds, overwrite
  )
  plan = asked.plan(earlier)
  remarks.show(plan.notes)
  if plan.is_current and terms.are_current(folder, declared):
    return plan.unchanged()
  if earlier.settings is None:
    print(check_disk(plan.cases, data_dir, declared.name, mm, f'the scans of {source}'))
  run = _run_here if beam is None else functools.partial(_run_beam, flags=beam)
  return _write(declared, asked, plan, run, facts)


def _write(
  declared: sources.Source,
  asked: request.Request,
  plan: request.Plan,
  run: Callable,
  facts: dict[str, Any],
) -> dict:
  """Writes what is planned in the place of what is there, and returns the report.

  Args:
    declared: the source, under the name that it is prepared by.
    asked: what is asked for.
    plan: what that comes to.
    run: converts cases, here or elsewhere.
    facts: of the report, whatever comes of the cases.
  """
  folder, start = plan.earlier.folder, time.monotonic()
  # Whatever is wrong with a case is its outcome: what the disk refuses in here is a write.
  writing = errors.writing(folder.parent, PrepareError)
  with writing, staging.stage_folder(folder.parent, folder.name) as place:
    latest = prepared.read(folder)
    if latest != plan.earlier:  # another process wrote it while the cases were listed
      plan = asked.plan(latest)
      remarks.show(plan.notes)
    if plan.is_current:
      terms.write(folder, declared)
      print(f'{folder}: has the licence and the citation of now')
      return plan.unchanged()
    staged, made = place / staging.CASES, place / folder.name
    outcomes = _stage(plan, staged, asked, run)
    written = writer.gather(declared, outcomes, staged, made, asked.conversion)
    seconds = round(time.monotonic() - start, 1)
    report = _report(made, written, plan) | facts | {'seconds': seconds}
    text = json.dumps(report, indent=2) + '\n'
    (made / bricks.SETTINGS).write_text(text, encoding='utf-8')
    staging.publish(place, folder)
  return report | {'changes': request.changes(plan.earlier.outcomes, writer.read_outcomes(folder))}


def check_disk(
  cases: Sequence[sources.Case],
  data_dir: str | os.PathLike,
  name: str,
  spacing: Sequence[float],
  what: str,
) -> str:
  """Says how much disk a source takes that is not prepared; see `disk_space.check`."""
  needed = disk_space.estimate(cases, spacing)
  written = 0 if is_in_bucket(data_dir) else staging.bytes_of_cases(epath.Path(data_dir), name)
  return disk_space.check(data_dir, needed, what, written)


def _settings(
  source: str, spacing: Sequence[float], brick: int, limit: int | None
) -> dict[str, Any]:
  """What must be the same where prepared cases are taken over."""
  return {
    'source': source,
    'version': bricks.VERSION,
    'spacing': list(spacing),
    'brick': brick,
    'limit': limit,
  }


def _absolute(path: str | None) -> str | None:
  return os.path.abspath(path) if path else path


def _list_cases(
  declared: sources.Source, source: str, manual_dir: str | None, path: str | None
) -> tuple[list[sources.Case], patient_groups.Groups | None, list[list[str]]]:
  """The cases of a source, and what the file of groups says.

  Returns:
    The cases, the groups, and source, name and patient of each case in a group or whose source says
    it, under the name that the source is prepared by.
  """
  cases, notes = declared.listed(manual_dir)
  remarks.show(notes)
  identity.check_names(cases)
  groups, patients = None, {}
  if path is not None:
    groups = patient_groups.read(path)
    called = source
    # Compared by the name that it gets, unless that is another source's.
    if declared.name not in sources.SOURCES and groups.knows(declared.name):
      called = f'{declared.name}:{source}'
      cases = [dataclasses.replace(case, source=declared.name) for case in cases]
    groups.check_current(cases, f'--download={called}={manual_dir}')
    patients = patient_groups.patients(groups.groups)
  known = []
  for case in cases:
    key, name = case.key, declared.name if case.source == source else case.source
    if case.patient or key in patients:
      known.append([name, case.name, patients.get(key, f'{name}/{case.patient}')])
  return cases, groups, known


def _stage(
  plan: request.Plan, staged: epath.Path, asked: request.Request, run: Callable
) -> list[writer.Outcome]:
  """The outcome of each case, after converting those that no earlier run has finished."""
  cases, keys = plan.cases, plan.keys
  staged.mkdir(parents=True, exist_ok=True)
  if not asked.overwrite:
    writer.restore(plan.earlier.folder, staged, keys)
  missing = []
  for case, key in zip(cases, keys, strict=True):
    outcome = writer.read_outcome(staged, key)
    if outcome is None or outcome.error:
      missing.append(case)
  if len(missing) < len(cases):
    print(f'{len(cases) - len(missing)} of {len(cases)} cases are converted already')
  run(
    missing, functools.partial(writer.stage, folder=os.fspath(staged), conversion=asked.conversion)
  )
  outcomes = writer.read_staged(staged, keys)
  if len(outcomes) < len(cases):
    raise PrepareError(
      f'{staged}: of {len(cases) - len(outcomes)} of {len(cases)} cases nothing came back; the '
      'workers must see the same data_dir: a bucket, or a disk that they share'
    )
  return outcomes


def _run_here(cases: Sequence[sources.Case], stage: Callable[[sources.Case], None]) -> None:
  records.import_tfds()  # takes seconds, which are of no case
  clock = progress.Clock(len(cases), 'cases')
  bar = progress.bar(cases, desc='cases', unit='case')
  for case in bar:
    stage(case)
    line = clock.after_one()
    if line:
      bar.write(line)


def _run_beam(
  cases: Sequence[sources.Case], stage: Callable[[sources.Case], None], *, flags: str
) -> None:
  import apache_beam as beam
  from apache_beam.options import pipeline_options

  with beam.Pipeline(options=pipeline_options.PipelineOptions(shlex.split(flags))) as pipeline:
    # Reshuffled, so that a runner does not fuse all cases into one worker.
    _ = pipeline | beam.Create(list(cases)) | beam.Reshuffle() | beam.Map(stage)


def _report(folder: epath.Path, written: writer.Written, plan: request.Plan) -> dict:
  # Whose scan it is, it may only say once it can be read.
  unread = {name for name, _ in written.skipped}
  new_draws = {name: split for name, split in plan.new_draws.items() if name not in unread}
  return {
    'cases': written.done,
    'skipped': written.skipped,
    'warnings': written.warnings,
    'records': written.records,
    'bytes': sum(path.stat().length for path in staging.files_in(folder)),
    'drawn': plan.earlier.drawn() | new_draws,
    **({} if plan.assigned is None else {'assigned': plan.assigned}),
  }


def counted(report: Mapping[str, Any]) -> str:
  """The cases of each split in a report of `prepare`, as '12 train, 3 validation'."""
  return ', '.join(f'{number} {split}' for split, number in report['cases'].items())
