r"""Prepares a source for training and evaluation.

  python -m input_pipeline.prepare --source=phantom --data_dir=DIR
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --data_dir=DIR \
      --spacing=4,4,3 --brick=32
  python -m input_pipeline.prepare --list
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --check

`DIR/SOURCE` appears when everything is written, or not at all: a run that is killed leaves only
`DIR/.SOURCE.incomplete`, which the next one clears. Exit code 0 if all cases were written, 1 if
some were skipped (the others are there) or nothing could be done. `--check` reads every case and
writes nothing.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

import tqdm

from input_pipeline import brick_writer, bricks, check, dedupe, options, sources


class PrepareError(ValueError):
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
) -> dict:
  """Writes `data_dir/name`; what is there already with equal settings is left alone.

  Args:
    source: a name of `sources.SOURCES`.
    data_dir: of all prepared sources; created where missing.
    manual_dir: folder the user downloaded, for sources that need one.
    name: of the prepared source; by default that of the source.
    groups: file of `dedupe`; the cases of a group go to one split.
    spacing: (3,) mm of the bricks.
    brick: edge of the bricks, voxels.
    limit: at most so many cases of each split; None is all.
    overwrite: replace what is there.

  Returns:
    settings, new_classes (beyond the built-in template), cases per split, skipped (case, reason),
    warnings (case, message), records, bytes, seconds.

  Raises:
    PrepareError: if it is there with other settings, or another process is writing it.
    SourceError: if the source or its files are missing.
    ValueError: if every case failed.
  """
  declared = sources.get_source(source)
  template = declared.template(manual_dir)
  if name is not None:
    declared = dataclasses.replace(declared, name=name)
  settings = {
    'version': bricks.VERSION,
    'spacing': [float(mm) for mm in spacing],
    'brick': brick,
    'limit': limit,
  }
  final = pathlib.Path(data_dir, declared.name)
  found = bricks.read_settings(data_dir, declared.name)
  digest = _digest(groups)
  if found is not None and not overwrite:
    if found.get('groups') != digest:
      raise PrepareError(f'{final}: prepared with other --groups; pass --overwrite to replace it')
    if found['settings'] != settings:
      raise PrepareError(
        f'{final}: prepared with {found["settings"]}, asked for {settings}; pass --overwrite to '
        'replace it, or another --data_dir'
      )
    if found.get('new_classes', []) != list(template.additions()):
      raise PrepareError(
        f'{final}: prepared with other new classes than {source} has now; pass --overwrite'
      )
    return found
  cases = declared.cases(manual_dir)
  if groups is not None:
    cases = dedupe.keep_together(cases, _read_groups(groups))
  cases = _first_of_each_split(_named(cases, source, name), limit)
  start = time.monotonic()
  with _staging(pathlib.Path(data_dir), declared.name) as staging:
    with tqdm.tqdm(total=len(cases), desc=declared.name, unit='case') as bar:
      written = brick_writer.write(
        declared, cases, staging, spacing=spacing, brick=brick, on_case=lambda name: bar.update()
      )
    folder = staging / declared.name
    report = _report(folder, written) | {'settings': settings}
    report['new_classes'] = list(template.additions())
    report['groups'] = digest
    report['seconds'] = round(time.monotonic() - start, 1)
    (folder / bricks.SETTINGS).write_text(json.dumps(report, indent=2) + '\n')
    if final.exists():
      os.replace(final, staging / 'replaced')
    os.replace(folder, final)
  return report


def _report(folder: pathlib.Path, written: brick_writer.Written) -> dict:
  return {
    'cases': written.done,
    'skipped': written.skipped,
    'warnings': written.warnings,
    'records': written.records,
    'bytes': sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()),
  }


def _digest(path: str | None) -> str | None:
  """What tells two group files apart; None without one."""
  if path is None:
    return None
  return hashlib.sha256(json.dumps(_read_groups(path)).encode()).hexdigest()


def _read_groups(path: str) -> list[dict]:
  try:
    groups = json.loads(pathlib.Path(path).read_text())['groups']
    return [{'split': group['split'], 'members': group['members']} for group in groups]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise PrepareError(f'{path}: not a file of input_pipeline.dedupe ({error!r})') from error


def _named(cases: list[sources.Case], source: str, name: str | None) -> list[sources.Case]:
  """The cases under the name of the prepared source, which sampling balances over."""
  if name is None:
    return cases
  return [
    dataclasses.replace(case, source=name) if case.source == source else case for case in cases
  ]


def _first_of_each_split(cases: Sequence[sources.Case], limit: int | None) -> list[sources.Case]:
  splits = sorted({case.split for case in cases})
  return [case for split in splits for case in [c for c in cases if c.split == split][:limit]]


@contextlib.contextmanager
def _staging(data_dir: pathlib.Path, source: str) -> Iterator[pathlib.Path]:
  """An empty folder beside the final one, which only one process has; removed afterwards."""
  folder = data_dir / f'.{source}.incomplete'
  folder.mkdir(parents=True, exist_ok=True)
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise PrepareError(f'{folder}: another process is preparing {source}; wait for it') from error
    for leftover in folder.iterdir():  # of a run that was killed
      shutil.rmtree(leftover)
    try:
      yield folder
    finally:
      shutil.rmtree(folder)
  finally:
    os.close(handle)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
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
    '--spacing', type=options.spacing, default=(1.5, 1.5, 1.5), help='mm: X,Y,Z or one number (1.5)'
  )
  parser.add_argument('--brick', type=_positive, default=64, help='voxels along an edge (64)')
  parser.add_argument('--cases', type=_positive, help='at most so many cases of each split')
  parser.add_argument('--groups', help='JSON of input_pipeline.dedupe: a patient in one split')
  parser.add_argument('--overwrite', action='store_true', help='replace what is prepared already')
  parser.add_argument('--list', action='store_true', help='print the known sources and end')
  parser.add_argument(
    '--check', action='store_true', help='read every case of the source and write nothing'
  )
  args = parser.parse_args(options.dashed(argv))
  if not args.list and (args.source is None or not (args.check or args.data_dir)):
    parser.error('needs --source and --data-dir, or --source and --check, or --list')
  return args


def _identifier(text: str) -> str:
  if not re.fullmatch('[a-z][a-z0-9_]*', text):
    raise argparse.ArgumentTypeError(f'{text!r}: expected small letters, digits and _')
  return text


def _positive(text: str) -> int:
  if int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text}: expected 1 or more')
  return int(text)


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


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = _parse(argv)
  if args.list:
    _print_sources()
    return 0
  try:
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
    )
  except ValueError as error:
    print(f'prepare: {error}', file=sys.stderr)
    return 1
  if report.get('warnings'):
    case, message = report['warnings'][0]
    print(
      f'{len(report["warnings"])} warnings in {bricks.SETTINGS}, first {case}: {message}',
      file=sys.stderr,
    )
  for case, reason in report['skipped']:
    print(f'skipped {case}: {reason}', file=sys.stderr)
  cases = ', '.join(f'{number} {split}' for split, number in report['cases'].items())
  folder = pathlib.Path(args.data_dir) / (args.name or args.source)
  print(
    f'{folder}: {cases} cases, {report["records"]} bricks, {report["bytes"] / 1e6:.1f} MB, '
    f'{len(report["skipped"])} cases skipped'
  )
  if report['skipped']:
    print('Correct the skipped cases and prepare again with --overwrite.', file=sys.stderr)
  return 1 if report['skipped'] else 0


if __name__ == '__main__':
  sys.exit(main())
