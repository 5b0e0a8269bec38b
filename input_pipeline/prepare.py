r"""Prepares a source for training and evaluation.

  python -m input_pipeline.prepare --source=phantom --data_dir=DIR
  python -m input_pipeline.prepare --source=openkbp --manual_dir=DOWNLOADED --data_dir=DIR \
      --spacing=4,4,3 --brick=32

`DIR/SOURCE` appears when everything is written, or not at all: a run that is killed leaves only
`DIR/.SOURCE.incomplete`, which the next one clears. Exit code 0 if all cases were written, 1 if
some were skipped (the others are there) or nothing could be done.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

import tqdm

from input_pipeline import bricks, options, sources


class PrepareError(ValueError):
  """What was asked for cannot be done; the message names the fix."""


def prepare(
  source: str,
  data_dir: str | os.PathLike,
  *,
  manual_dir: str | None = None,
  spacing: Sequence[float] = (1.5, 1.5, 1.5),
  brick: int = 64,
  limit: int | None = None,
  overwrite: bool = False,
) -> dict:
  """Writes `data_dir/source`; what is there already with equal settings is left alone.

  Args:
    source: a name of `sources.SOURCES`.
    data_dir: of all prepared sources; created where missing.
    manual_dir: folder the user downloaded, for sources that need one.
    spacing: (3,) mm of the bricks.
    brick: edge of the bricks, voxels.
    limit: at most so many cases of each split; None is all.
    overwrite: replace what is there.

  Returns:
    settings, cases per split, skipped (case, reason), records, bytes, seconds.

  Raises:
    PrepareError: if it is there with other settings, or another process is writing it.
    SourceError: if the source or its files are missing.
    ValueError: if every case failed.
  """
  declared = sources.get_source(source)
  settings = {
    'version': bricks.VERSION,
    'spacing': [float(mm) for mm in spacing],
    'brick': brick,
    'limit': limit,
  }
  final = pathlib.Path(data_dir, source)
  found = bricks.read_settings(data_dir, source)
  if found is not None and not overwrite:
    if found['settings'] != settings:
      raise PrepareError(
        f'{final}: prepared with {found["settings"]}, asked for {settings}; pass --overwrite to '
        'replace it, or another --data_dir'
      )
    return found
  cases = _first_of_each_split(declared.cases(manual_dir), limit)
  start = time.monotonic()
  with _staging(pathlib.Path(data_dir), source) as staging:
    with tqdm.tqdm(total=len(cases), desc=source, unit='case') as bar:
      written = bricks.write(
        declared, cases, staging, spacing=spacing, brick=brick, on_case=lambda name: bar.update()
      )
    folder = staging / source
    report = _report(folder, written) | {'settings': settings}
    report['seconds'] = round(time.monotonic() - start, 1)
    (folder / bricks.SETTINGS).write_text(json.dumps(report, indent=2) + '\n')
    if final.exists():
      os.replace(final, staging / 'replaced')
    os.replace(folder, final)
  return report


def _report(folder: pathlib.Path, written: bricks.Written) -> dict:
  return {
    'cases': written.done,
    'skipped': written.skipped,
    'records': written.records,
    'bytes': sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()),
  }


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
  parser.add_argument('--source', required=True, help=', '.join(sorted(sources.SOURCES)))
  parser.add_argument('--data-dir', required=True, help='folder of all prepared sources')
  parser.add_argument('--manual-dir', help='folder that you downloaded the source to')
  parser.add_argument(
    '--spacing', type=options.spacing, default=(1.5, 1.5, 1.5), help='mm: X,Y,Z or one number (1.5)'
  )
  parser.add_argument('--brick', type=_positive, default=64, help='voxels along an edge (64)')
  parser.add_argument('--cases', type=_positive, help='at most so many cases of each split')
  parser.add_argument('--overwrite', action='store_true', help='replace what is prepared already')
  return parser.parse_args(options.dashed(argv))


def _positive(text: str) -> int:
  if int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text}: expected 1 or more')
  return int(text)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = _parse(argv)
  try:
    report = prepare(
      args.source,
      args.data_dir,
      manual_dir=args.manual_dir,
      spacing=args.spacing,
      brick=args.brick,
      limit=args.cases,
      overwrite=args.overwrite,
    )
  except ValueError as error:
    print(f'prepare: {error}', file=sys.stderr)
    return 1
  for case, reason in report['skipped']:
    print(f'skipped {case}: {reason}', file=sys.stderr)
  cases = ', '.join(f'{number} {split}' for split, number in report['cases'].items())
  print(
    f'{pathlib.Path(args.data_dir) / args.source}: {cases} cases, {report["records"]} bricks, '
    f'{report["bytes"] / 1e6:.1f} MB, {len(report["skipped"])} cases skipped'
  )
  if report['skipped']:
    print('Correct the skipped cases and prepare again with --overwrite.', file=sys.stderr)
  return 1 if report['skipped'] else 0


if __name__ == '__main__':
  sys.exit(main())
