r"""Prepares a source for training and evaluation.

  python -m input_pipeline.prepare --source=phantom --data_dir=DIR
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --data_dir=DIR \
      --spacing=4,4,3 --brick=32
  python -m input_pipeline.prepare --list
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --check

`DIR/SOURCE` appears when everything is written, or not at all. A run that is killed leaves its
finished cases in `DIR/.SOURCE.incomplete`, and the same command goes on from there. Given again, it
compares every case (files, label meanings, classes, split) with what is prepared: what changed is
converted again, what is gone is removed. Exit code 0 if all cases were written, 1 if some were
skipped (the others are there) or nothing could be done; the same command tries the skipped ones
again. `--beam` converts the cases on a Beam runner. `--check` reads every case and writes nothing.
"""

import argparse
import dataclasses
import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from input_pipeline import (
  bricks,
  check,
  cli,
  disk_space,
  errors,
  patient_groups,
  prepared,
  progress,
  remarks,
  request,
  sources,
)
from input_pipeline.bricks import cutting, identity, records, staging, terms, writer
from input_pipeline.buckets import is_in_bucket
from input_pipeline.prepared import PrepareError


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
    if declared.name != source and groups.knows(declared.name):  # compared by the name it gets
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


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(
    prog='python -m input_pipeline.prepare', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--source', help=', '.join(sorted(sources.SOURCES)))
  parser.add_argument('--data-dir', help='folder of all prepared sources')
  parser.add_argument('--manual-dir', help='folder that you downloaded the source to')
  parser.add_argument(
    '--name', type=cli.identifier, help='of the prepared source, where one source is prepared twice'
  )
  parser.add_argument(
    '--spacing', type=cli.spacing, default=(1.5, 1.5, 1.5), help='mm: X,Y,Z or one number (1.5)'
  )
  parser.add_argument('--brick', type=cli.at_least(1), default=64, help='voxels along an edge (64)')
  parser.add_argument('--cases', type=cli.at_least(1), help='at most so many cases of each split')
  parser.add_argument('--groups', help='JSON of dedupe: a patient in one split')
  parser.add_argument(
    '--folds',
    action='store_true',
    help='write every case of train and validation both for training and for scoring, as '
    'cross-validation needs them',
  )
  parser.add_argument('--overwrite', action='store_true', help='replace what is prepared already')
  parser.add_argument(
    '--beam',
    nargs='?',
    const='',
    metavar='OPTIONS',
    help="convert the cases with Apache Beam, here or with --beam='--runner=DataflowRunner ...'",
  )
  parser.add_argument('--list', action='store_true', help='print the known sources and end')
  parser.add_argument(
    '--check', action='store_true', help='read every case of the source and write nothing'
  )
  return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = make_parser()
  args = parser.parse_args(cli.dashed(argv))
  if not args.list and (args.source is None or not (args.check or args.data_dir)):
    parser.error('needs --source and --data-dir, or --source and --check, or --list')
  return args


def _print_sources() -> None:
  """The known sources as a Markdown table."""
  print('| source | cases | classes | licence | what |\n|-|-|-|-|-|')
  for source in sources.SOURCES.values():
    classes = ', '.join(source.classes) or 'yours'
    print(
      f'| {source.name} | {source.expected or "yours"} | {classes} | {source.licence} | '
      f'{source.description} |'
    )


def _check(source: str, manual_dir: str | None) -> int:
  """Prints what is wrong with a download; returns the exit code, 1 if a case cannot be used."""
  number = faults = odd = 0
  for case, findings in check.check_source(source, manual_dir):
    number += case != ''
    for finding in findings:
      progress.line(f'{finding.kind}: {case or source}: {finding.message}')
    faults += any(finding.kind == 'error' for finding in findings)
    odd += sum(finding.kind != 'error' for finding in findings)
  print(f'{source}: {number} cases read, {faults} of them cannot be used, {odd} remarks')
  return 1 if faults else 0


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = _parse(argv)
  if args.list:
    _print_sources()
    return 0
  if args.check:
    return _check(args.source, args.manual_dir)
  report = prepare(
    args.source,
    args.data_dir,
    manual_dir=args.manual_dir,
    name=args.name,
    groups=args.groups,
    spacing=args.spacing,
    brick=args.brick,
    limit=args.cases,
    overwrite=args.overwrite,
    folds=args.folds,
    beam=args.beam,
  )
  if report.get('warnings'):
    case, message = report['warnings'][0]
    print(
      f'{len(report["warnings"])} warnings in {bricks.SETTINGS}, first {case}: {message}',
      file=sys.stderr,
    )
  for case, reason in report['skipped']:
    print(f'skipped {case}: {reason}', file=sys.stderr)
  changes = [f'{number} {what}' for what, number in report['changes'].items() if number]
  folder = epath.Path(args.data_dir) / (args.name or args.source)
  print(
    f'{folder}: {counted(report)} cases, {report["records"]} bricks, '
    f'{report["bytes"] / 1e6:.1f} MB, {len(report["skipped"])} cases skipped; {", ".join(changes)}'
  )
  if report['skipped']:
    print('Correct the skipped cases and give the same command again.', file=sys.stderr)
  return 1 if report['skipped'] else 0


if __name__ == '__main__':
  sys.exit(main())
