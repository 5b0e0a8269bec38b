r"""Prepares a source for training and evaluation.

  python -m input_pipeline.prepare --source=phantom --data_dir=DIR
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --data_dir=DIR \
      --spacing=4,4,3 --brick=32
  python -m input_pipeline.prepare --list
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --check

`DIR/SOURCE` appears when everything is written, or not at all. A run that is killed leaves its
finished cases in `DIR/.SOURCE.incomplete`, and the same command goes on from there. Given again, it
compares every case (files, label meanings, classes, split) with what is prepared: what changed is
converted again, what is gone is removed. Exit code 0 if
all cases were written, 1 if some were skipped (the others are there) or nothing could be done; the
same command tries the skipped ones again. `--beam` converts the cases on a Beam runner. `--check`
reads every case and writes nothing.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from input_pipeline import bricks, check, cli, dedupe, errors, progress, sources, text_files
from input_pipeline.bricks import cutting, writer
from input_pipeline.errors import UserError
from input_pipeline.sources import splits

_CASES = 'cases'


class PrepareError(UserError):
  """What was asked for cannot be done; the message names the fix."""


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
  beam: str | None = None,
) -> dict:
  """Brings `data_dir/name` to what the source holds now.

  A case that is prepared already, or that a killed run finished, is taken over if its files, label
  meanings, classes, split and settings are the same. A drawn split (`sources.Case.drawn`) stays as
  it was prepared first, whatever cases come or go.

  Args:
    source: a name of `sources.SOURCES`.
    data_dir: of all prepared sources, may be gs://; created where missing.
    manual_dir: folder the user downloaded, for sources that need one.
    name: of the prepared source; by default that of the source.
    groups: file of `dedupe`; the cases of a group go to one split.
    spacing: (3,) mm of the bricks.
    brick: edge of the bricks, voxels.
    limit: at most so many cases of each split; None is all.
    overwrite: replace what is there, though settings differ; every case is converted.
    beam: options of Apache Beam, which then converts the cases; None converts them here.

  Returns:
    settings, new_classes (beyond the built-in template), cases per split, skipped (case, reason),
    warnings (case, message), drawn (case -> split of every case whose split was ever drawn),
    records, bytes, seconds; and changes, which is not stored: how many cases were added, replaced,
    removed and kept.

  Raises:
    PrepareError: if it is there with other settings, another process is writing it, or Beam is
      asked for and not installed.
    SourceError: if the source or its files are missing, or every case failed.
  """
  declared = sources.get_source(source)
  template = declared.template(manual_dir)
  if name is not None:
    declared = dataclasses.replace(declared, name=name)
  settings = {
    'source': source,
    'version': bricks.VERSION,
    'spacing': [float(mm) for mm in spacing],
    'brick': brick,
    'limit': limit,
  }
  final = epath.Path(data_dir) / declared.name
  _check_folder(final)
  current = bricks.read_settings(data_dir, declared.name)
  before = _prepared_cases(final) if current else []
  if current is not None and not overwrite:
    _check_settings(final, current, settings, groups)
  cases, notes = declared.listed(manual_dir)
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  digest = None
  if groups is not None:
    found, scans, digest = _read_groups(groups)
    _check_scans(groups, scans, cases, f'--download={source}={manual_dir}')
    cases = dedupe.keep_together(cases, found)
  drawn = {outcome.name: outcome.split for outcome in before} | (current or {}).get('drawn', {})
  cases = splits.keep(_named(cases, source, name), drawn)
  cases = _first_of_each_split(cases, limit)
  start = time.monotonic()
  origin = repr((source, manual_dir and os.path.abspath(manual_dir), list(template.additions())))
  conversion = writer.Conversion(cutting.triple(list(map(float, spacing))), brick, origin)
  keys = [conversion.key(case) for case in cases]
  if current and not overwrite and not current['skipped'] and keys == [o.key for o in before]:
    return current | {'changes': _changes(before, before)}
  run = _run_here if beam is None else functools.partial(_run_beam, flags=beam)
  # Whatever is wrong with a case is its outcome: what the disk refuses in here is a write.
  writing = errors.writing(data_dir, PrepareError)
  with writing, _staging(epath.Path(data_dir), declared.name) as staging:
    staged, folder = staging / _CASES, staging / declared.name
    outcomes = _stage(cases, keys, staged, conversion, None if overwrite else final, run)
    written = writer.gather(declared, outcomes, staged, folder, conversion)
    report = _report(folder, written) | {'settings': settings}
    report['new_classes'] = list(template.additions())
    report['groups'] = digest
    report['drawn'] = drawn | {case.name: case.split for case in cases if case.drawn}
    report['seconds'] = round(time.monotonic() - start, 1)
    (folder / bricks.SETTINGS).write_text(json.dumps(report, indent=2) + '\n')
    _publish(folder, final, staging / 'replaced')
  return report | {'changes': _changes(before, writer.read_outcomes(final))}


def _check_folder(final: epath.Path) -> None:
  """PrepareError if other files lie where the prepared source goes: they would be replaced."""
  known = ('bricks', 'volumes', bricks.OUTCOMES, bricks.SETTINGS)
  other = sorted(path.name for path in final.iterdir()) if final.is_dir() else []
  other = [name for name in other if name not in known and not name.startswith('.')]
  if other:
    raise PrepareError(
      f'{final}: holds {other[0]}, which is of no prepared source; choose another --data_dir or '
      '--name, or move it away'
    )


def _check_settings(final: epath.Path, current: dict, wanted: dict, groups: str | None) -> None:
  """PrepareError if what is prepared was asked for otherwise; it names what differs."""
  known = current['settings']
  # Before 1.1.0 the source was not noted.
  differ = [field for field in wanted if known.get(field, wanted[field]) != wanted[field]]
  if differ:
    shown = ', '.join(f'{field} {known[field]}, not {wanted[field]}' for field in differ)
    raise PrepareError(
      f'{final}: prepared with {shown}; pass --overwrite to replace it, or another --data_dir or '
      '--name'
    )
  if current.get('groups') and groups is None:
    raise PrepareError(
      f'{final}: prepared with --groups; pass the file again, or --overwrite to do without'
    )


def _check_scans(path: str, scans: dict | None, cases: Sequence[sources.Case], fix: str) -> None:
  """PrepareError if scans came or were replaced since the groups were found."""
  if scans is None:
    print(
      f'note: {path} does not say which scans were compared; run input_pipeline.dedupe again where '
      'any came since',
      file=sys.stderr,
    )
    return
  other = [case for case in cases if scans.get((case.source, case.name)) != dedupe.size_of(case)]
  if other:
    raise PrepareError(
      f'{path}: {len(other)} of {len(cases)} scans were not there or not the same when it was '
      f'made, such as {other[0].name}; run input_pipeline.dedupe again with {fix}'
    )


def _prepared_cases(final: epath.Path) -> list[writer.Outcome]:
  """What is prepared; earlier versions did not note the source of a case."""
  return [
    dataclasses.replace(outcome, source=outcome.source or final.name)
    for outcome in writer.read_outcomes(final)
  ]


def _changes(before: Sequence[writer.Outcome], after: Sequence[writer.Outcome]) -> dict[str, int]:
  """How many cases were added, replaced, removed and kept."""
  old, new = ({(o.source, o.name): o.key for o in part} for part in (before, after))
  kept = sum(old.get(case) == key for case, key in new.items())
  return {
    'added': len(new.keys() - old.keys()),
    'replaced': len(new.keys() & old.keys()) - kept,
    'removed': len(old.keys() - new.keys()),
    'kept': kept,
  }


def _stage(
  cases: Sequence[sources.Case],
  keys: Sequence[str],
  staged: epath.Path,
  conversion: writer.Conversion,
  finished: epath.Path | None,
  run: Callable,
) -> list[writer.Outcome]:
  """The outcome of each case, after converting those that no earlier run has finished."""
  if len(set(keys)) < len(keys):
    raise PrepareError('two cases have the same name and labels; rename one')
  staged.mkdir(parents=True, exist_ok=True)
  if finished is not None:
    writer.restore(finished, staged, keys)
  missing = []
  for case, key in zip(cases, keys, strict=True):
    outcome = writer.read_outcome(staged, key)
    if outcome is None or outcome.error:
      missing.append(case)
  if len(missing) < len(cases):
    print(f'{len(cases) - len(missing)} of {len(cases)} cases are converted already')
  run(missing, functools.partial(writer.stage, folder=os.fspath(staged), conversion=conversion))
  return writer.read_staged(staged, keys)


def _run_here(cases: Sequence[sources.Case], stage: Callable[[sources.Case], None]) -> None:
  for case in progress.bar(cases, desc='cases', unit='case'):
    stage(case)


def _run_beam(
  cases: Sequence[sources.Case], stage: Callable[[sources.Case], None], *, flags: str
) -> None:
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise PrepareError(f'--beam: {error}; pip install -r requirements-beam.txt') from error
  with beam.Pipeline(options=pipeline_options.PipelineOptions(shlex.split(flags))) as pipeline:
    # Reshuffled, so that a runner does not fuse all cases into one worker.
    _ = pipeline | beam.Create(list(cases)) | beam.Reshuffle() | beam.Map(stage)


def _publish(folder: epath.Path, final: epath.Path, replaced: epath.Path) -> None:
  """Puts a complete folder in its place; in a bucket, its SETTINGS last, which make it count."""
  if '://' not in os.fspath(final):
    if final.exists():
      os.replace(final, replaced)
    os.replace(folder, final)
    return
  if final.exists():
    (final / bricks.SETTINGS).unlink(missing_ok=True)
    final.rmtree()
  files = sorted(_files(folder), key=lambda path: path.name == bricks.SETTINGS)
  for path in files:
    target = final / os.path.relpath(os.fspath(path), os.fspath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    path.copy(target)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    yield from _files(path) if path.is_dir() else [path]


def _report(folder: epath.Path, written: writer.Written) -> dict:
  return {
    'cases': written.done,
    'skipped': written.skipped,
    'warnings': written.warnings,
    'records': written.records,
    'bytes': sum(path.stat().length for path in _files(folder)),
  }


def _read_groups(path: str) -> tuple[list[dict], dict | None, str]:
  """The groups, the bytes of each (source, case) that was compared if noted, and a digest."""
  try:
    content = text_files.read_json(path)
    groups = [{'split': g['split'], 'members': g['members']} for g in content['groups']]
    scans = content.get('scans')
    if scans is not None:
      scans = {(source, name): size for source, name, size in scans}
  except UserError:
    raise
  except OSError as error:
    raise PrepareError(f'{path}: cannot be read ({error.strerror}); correct --groups') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise PrepareError(f'{path}: not a file of input_pipeline.dedupe ({error!r})') from error
  return groups, scans, hashlib.sha256(json.dumps(groups).encode()).hexdigest()


def _named(cases: list[sources.Case], source: str, name: str | None) -> list[sources.Case]:
  """The cases under the name of the prepared source, which sampling balances over."""
  if name is None:
    return cases
  return [
    dataclasses.replace(case, source=name) if case.source == source else case for case in cases
  ]


def _first_of_each_split(cases: Sequence[sources.Case], limit: int | None) -> list[sources.Case]:
  names = sorted({case.split for case in cases})
  return [case for split in names for case in [c for c in cases if c.split == split][:limit]]


@contextlib.contextmanager
def _staging(data_dir: epath.Path, source: str) -> Iterator[epath.Path]:
  """A folder beside the final one, with nothing in it but the cases of an earlier run.

  Only one process has it (a bucket has no locks, there it is up to the user). It is removed
  afterwards; if something fails, its cases stay for the next run.
  """
  folder = data_dir / f'.{source}.incomplete'
  folder.mkdir(parents=True, exist_ok=True)
  with _locked(folder, source):
    for leftover in folder.iterdir():  # of a run that was killed
      if leftover.name != _CASES:
        leftover.rmtree()
    yield folder
    folder.rmtree()


@contextlib.contextmanager
def _locked(folder: epath.Path, source: str) -> Iterator[None]:
  if '://' in os.fspath(folder):
    yield
    return
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise PrepareError(f'{folder}: another process is preparing {source}; wait for it') from error
    yield
  finally:
    os.close(handle)


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(
    prog='python -m input_pipeline.prepare',
    description='Prepares CT scans for training and evaluation.',
    allow_abbrev=False,
  )
  parser.add_argument('--source', help=', '.join(sorted(sources.SOURCES)))
  parser.add_argument('--data-dir', help='folder of all prepared sources')
  parser.add_argument('--manual-dir', help='folder that you downloaded the source to')
  parser.add_argument(
    '--name', type=_identifier, help='of the prepared source, where one source is prepared twice'
  )
  parser.add_argument(
    '--spacing', type=cli.spacing, default=(1.5, 1.5, 1.5), help='mm: X,Y,Z or one number (1.5)'
  )
  parser.add_argument('--brick', type=cli.at_least(1), default=64, help='voxels along an edge (64)')
  parser.add_argument('--cases', type=cli.at_least(1), help='at most so many cases of each split')
  parser.add_argument('--groups', help='JSON of input_pipeline.dedupe: a patient in one split')
  parser.add_argument('--overwrite', action='store_true', help='replace what is prepared already')
  parser.add_argument(
    '--beam',
    nargs='?',
    const='',
    metavar='OPTIONS',
    help="convert the cases with Apache Beam, here or with e.g. '--runner=DataflowRunner ...'",
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


def _identifier(text: str) -> str:
  if not re.fullmatch('[a-z][a-z0-9_]*', text):
    raise argparse.ArgumentTypeError(f'{text!r}: expected small letters, digits and _')
  return text


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
  number = errors = warned = 0
  for case, findings in check.check_source(source, manual_dir):
    number += case != ''
    for finding in findings:
      print(f'{finding.kind}: {case or source}: {finding.message}')
    errors += any(finding.kind == 'error' for finding in findings)
    warned += bool(findings)
  print(f'{source}: {number} cases read, {errors} of them cannot be used, {warned} remarks')
  return 1 if errors else 0


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
  cases = ', '.join(f'{number} {split}' for split, number in report['cases'].items())
  folder = pathlib.Path(args.data_dir) / (args.name or args.source)
  print(
    f'{folder}: {cases} cases, {report["records"]} bricks, {report["bytes"] / 1e6:.1f} MB, '
    f'{len(report["skipped"])} cases skipped; {", ".join(changes)}'
  )
  if report['skipped']:
    print('Correct the skipped cases and give the same command again.', file=sys.stderr)
  return 1 if report['skipped'] else 0


if __name__ == '__main__':
  sys.exit(main())
