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
import sys
from collections.abc import Sequence

from etils import epath

from input_pipeline import bricks, cli, errors, progress, sources
from input_pipeline.prepare import check, preparation


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
  report = preparation.prepare(
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
    f'{folder}: {preparation.counted(report)} cases, {report["records"]} bricks, '
    f'{report["bytes"] / 1e6:.1f} MB, {len(report["skipped"])} cases skipped; {", ".join(changes)}'
  )
  if report['skipped']:
    print('Correct the skipped cases and give the same command again.', file=sys.stderr)
  return 1 if report['skipped'] else 0
