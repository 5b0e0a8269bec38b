"""Packs what a bare machine needs: wheels, the checkout's programs, prepared bricks.

  python -m tests.benchmarks.accelerator.pack --data-dir=DIR --output=FOLDER

Into FOLDER: `wheels/`, for the platform and Python that this runs on, of everything that training
needs without TensorFlow, but for jax's build for the device, which the machine must have (leave
them out with --no-wheels where jax is installed already); `checkout.tar`, what is committed;
`data.tar`, the prepared sources, at most --limit-mb. There:

  pip install --no-index --find-links wheels -r checkout/requirements-grain.txt
"""

import argparse
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Sequence

from input_pipeline import bricks

ROOT = pathlib.Path(__file__).resolve().parents[3]


def pack_data(
  data_dir: pathlib.Path, names: Sequence[str], output: pathlib.Path, limit: int
) -> int:
  """Writes `data.tar` of prepared sources; returns its bytes.

  Raises:
    SystemExit: if it is larger than `limit` bytes.
  """
  file = output / 'data.tar'
  with tarfile.open(file, 'w') as archive:
    for name in names:
      archive.add(data_dir / name, f'data/{name}')
  size = file.stat().st_size
  if size > limit:
    file.unlink()
    raise SystemExit(
      f'{data_dir}: {size / 1e6:.0f} MB are prepared, more than {limit / 1e6:.0f}; prepare fewer '
      'cases (--cases) or coarser ones (--spacing), or raise --limit-mb'
    )
  return size


def main(argv: list[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data-dir', type=pathlib.Path, required=True, help='of prepared sources')
  parser.add_argument('--source', action='append', help='default: every prepared one')
  parser.add_argument('--output', type=pathlib.Path, required=True)
  parser.add_argument('--limit-mb', type=float, default=40)
  parser.add_argument('--no-wheels', action='store_true')
  args = parser.parse_args(argv)
  args.output.mkdir(parents=True, exist_ok=True)
  names = args.source or bricks.prepared_sources(args.data_dir)
  size = pack_data(args.data_dir, names, args.output, int(args.limit_mb * 1e6))
  print(f'{args.output / "data.tar"}: {size / 1e6:.1f} MB')
  command = [
    'git',
    'archive',
    '--prefix=checkout/',
    '--output',
    args.output / 'checkout.tar',
    'HEAD',
  ]
  subprocess.run(command, cwd=ROOT, check=True)
  if not args.no_wheels:
    command = ['-r', ROOT / 'requirements-grain.txt', '--dest', args.output / 'wheels']
    subprocess.run([sys.executable, '-m', 'pip', 'download', '--quiet', *command], check=True)
  return 0


if __name__ == '__main__':
  sys.exit(main())
