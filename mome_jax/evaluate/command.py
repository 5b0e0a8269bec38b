"""Scores of folders of masks, and differences between evaluations.

  python -m mome_jax.evaluate score --predictions DIR --references DIR
  python -m mome_jax.evaluate compare A B [C ...]
  python -m mome_jax.evaluate nnunet --results DIR --dataset dataset.json --output DIR

score: the masks of two folders, as nnU-Net, TotalSegmentator and `mome_jax.predict` write them;
compare: paired differences B - A, case by case, of two workdirs or evaluation folders, or a table
of several, each against the first; nnunet: results named and numbered as nnU-Net's, for its own
evaluation. A checkpoint is scored by
`python -m mome_jax.main --mode=evaluate`.
"""

import argparse
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from etils import epath

from input_pipeline import errors, remarks
from input_pipeline.cli import Parser, dashed, names
from mome_jax.evaluate import compare, nnunet_results, score_files, score_folders


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.evaluate', description=__doc__, allow_abbrev=False)
  commands = parser.add_subparsers(dest='command', required=True)
  scoring = commands.add_parser(
    'score',
    help='predicted masks against references',
    description=_purpose(score_folders.score_folders),
  )
  scoring.add_argument(
    '--predictions', required=True, type=pathlib.Path, metavar='DIR', help='folder of masks'
  )
  scoring.add_argument(
    '--references',
    required=True,
    type=pathlib.Path,
    metavar='DIR',
    help='folder of the true ones, laid out as either',
  )
  scoring.add_argument(
    '--classes', type=names, default=(), help='names separated by commas; default: all'
  )
  scoring.add_argument(
    '--dataset',
    default='',
    metavar='NAME',
    help='what the rows call it; a name that `prepare --list` has gets published numbers '
    'beside its own; default: that of the folder of references',
  )
  scoring.add_argument('--output', metavar='DIR', help='default: evaluation/ in --predictions')
  comparing = commands.add_parser(
    'compare',
    help='paired differences between evaluations',
    description=_purpose(compare.compare),
  )
  comparing.add_argument('a', metavar='A', help='workdir, evaluation folder or cases.csv')
  comparing.add_argument('others', metavar='B', nargs='+', help='several: one line each')
  comparing.add_argument(
    '--sources',
    type=names,
    default=(),
    help='of these datasets alone, separated by commas; default: all',
  )
  comparing.add_argument(
    '--classes',
    type=names,
    default=(),
    help='these classes alone, separated by commas; default: all',
  )
  comparing.add_argument('--output', metavar='DIR', help='also write comparison.md and .csv there')
  converting = commands.add_parser(
    'nnunet', help='results as nnU-Net writes them', description=_purpose(nnunet_results.write)
  )
  converting.add_argument(
    '--results', required=True, type=pathlib.Path, metavar='DIR', help='of predict'
  )
  converting.add_argument(
    '--dataset', required=True, type=pathlib.Path, metavar='FILE', help='its dataset.json'
  )
  converting.add_argument(
    '--output', required=True, type=pathlib.Path, metavar='DIR', help='folder to write'
  )
  return parser


def _purpose(function: Callable) -> str:
  """The docstring of a function, up to its arguments."""
  return inspect.cleandoc(function.__doc__ or '').split('\n\nArgs:')[0]


def _score(args: argparse.Namespace) -> int:
  folder = epath.Path(args.output or epath.Path(args.predictions) / 'evaluation')
  made = _make(folder, parents=bool(args.output))
  rows: list = []
  try:
    scores = score_folders.score_folders(
      args.predictions, args.references, classes=args.classes, dataset=args.dataset
    )
    rows, failed = scores.rows, scores.failed
  finally:
    if made and not rows:
      folder.rmdir()
  remarks.show(scores.notes)
  for case, reason in failed:
    print(f'not scored: {case}: {reason}', file=sys.stderr)
  if not rows:
    print(f'error: {args.predictions}: nothing could be scored', file=sys.stderr)
    return 1
  cases = {row['case'] for row in rows}
  number = f'{len(cases)} of {len({*cases, *dict(failed)})}' if failed else str(len(cases))
  title = f'{number} scans, {args.predictions} against {args.references}'
  origin = {'predictions': str(args.predictions), 'references': str(args.references)}
  _, table = score_files.write(folder, rows, title=title, origin=origin, failed=failed)
  print(f'{table}\nTable and scores: {folder}')
  return 1 if failed else 0


def _make(folder: epath.Path, *, parents: bool) -> bool:
  """Makes a folder, and tries to write there before the work, not after it; whether it is new.

  Without `parents` nothing is done where its parent is missing, which is told by who reads that.
  """
  made = not folder.exists()
  if not (parents or folder.parent.is_dir()):
    return False
  with errors.writing(folder):
    folder.mkdir(parents=parents, exist_ok=True)
    trial = folder / '.trial'
    trial.write_text('', encoding='utf-8')
    trial.unlink()
  return made


def _compare(args: argparse.Namespace) -> int:
  runs = {}
  for name in (args.a, *args.others):
    rows = compare.of_sources(score_files.read(name), args.sources, name)
    runs[name] = compare.of_classes(rows, args.classes, name)
  comparisons = [
    compare.compare(runs[args.a], runs[name], names=(args.a, name)) for name in args.others
  ]
  if len(comparisons) == 1:
    text = compare.to_markdown(comparisons[0])
  else:
    parent = os.path.commonprefix(list(runs)).rpartition('/')[0]  # of URLs too
    shared = f'{parent}/' if parent else ''
    text = compare.overview({name.removeprefix(shared): runs[name] for name in runs})
  print(text)
  if args.output:
    folder = epath.Path(args.output)
    with errors.writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      (folder / 'comparison.md').write_text(text, encoding='utf-8')
      (folder / 'comparison.csv').write_text(compare.to_csv(comparisons), encoding='utf-8')
    print(f'Written: {folder}')
  return 0


def _nnunet(args: argparse.Namespace) -> int:
  written, notes = nnunet_results.write(args.results, args.dataset, args.output)
  remarks.show(notes)
  print(f'{len(written)} cases written: {args.output}')
  return 0


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  return {'score': _score, 'compare': _compare, 'nnunet': _nnunet}[args.command](args)
