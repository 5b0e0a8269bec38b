r"""How fast prepared sources become training batches on this machine.

  python -m input_pipeline.throughput --data_dir=DIR [--source=NAME ...] [--patch=96]

Prints patches a second, how many voxels were read from disk for each one in a patch, and the memory
of the process. Give it the sources and the settings of a training run; what that run waited for
is `data_wait` in its `metrics.jsonl`.
"""

import argparse
import dataclasses
import pathlib
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_collections

from input_pipeline import bricks, cli, errors
from input_pipeline.batches import dataset


@dataclasses.dataclass(frozen=True)
class Throughput:
  """What was measured.

  Attributes:
    patches_per_second: while batches are taken as fast as they come.
    read_amplification: voxels decoded from the shards for each voxel of a patch.
    peak_memory: largest resident size of the process so far, bytes.
  """

  patches_per_second: float
  read_amplification: float
  peak_memory: int


def measure(
  config: Any,
  stores: Sequence[bricks.BrickStore],
  *,
  batch_size: int,
  seconds: float,
  warm_up: float,
) -> Throughput:
  """Takes batches as fast as they come.

  Args:
    config: as of `dataset.make_dataset`.
    stores: the prepared sources; patches are drawn around all of their classes.
    batch_size: patches in a batch.
    seconds: of the measurement.
    warm_up: seconds before it, in which files and cache get warm.
  """
  supervised = {name for store in stores for case in store.cases for name in case.supervised}
  classes = [name for name in stores[0].template.names() if name in supervised]
  batches = dataset.make_dataset(config, stores, classes, seed=0, batch_size=batch_size)
  for duration in (warm_up, seconds):
    taken, before, start = 0, batches.voxels_read, time.perf_counter()
    while taken == 0 or time.perf_counter() - start < duration:
      taken += len(next(batches)['label'])
    passed = time.perf_counter() - start
  voxels = taken * config.patch[0] * config.patch[1] * config.patch[2]
  return Throughput(
    patches_per_second=taken / passed,
    read_amplification=(batches.voxels_read - before) / voxels,
    # In bytes on macOS, in KiB elsewhere.
    peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    * (1 if sys.platform == 'darwin' else 1024),
  )


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(prog='python -m input_pipeline.throughput', description=__doc__)
  parser.add_argument('--data-dir', required=True, type=pathlib.Path)
  parser.add_argument('--source', action='append', help='default: every prepared one')
  for option, default, text in (
    ('--patch', 96, 'voxels along an edge'),
    ('--batch-size', 8, 'patches in a batch'),
    ('--parallel', 2, 'patches made at the same time'),
  ):
    text = f'{text} ({default})'
    parser.add_argument(option, type=cli.at_least(1), metavar='N', default=default, help=text)
  parser.add_argument(
    '--cache-mb', type=cli.at_least(0), default=1024, help='decoded bricks kept (1024)'
  )
  parser.add_argument('--plain', action='store_true', help='without augmentation')
  parser.add_argument('--seconds', type=cli.seconds, default=20, help='of the measurement (20)')
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(cli.dashed(argv))
  config = ml_collections.ConfigDict(
    {
      'patch': (args.patch,) * 3,
      'windows': ((-175.0, 250.0),),
      'foreground': 0.67,
      'balance': 'sources',
      'cache_mb': args.cache_mb,
      'num_parallel': args.parallel,
      'augment': {'enabled': not args.plain},
    }
  )
  names = args.source or bricks.prepared_sources(args.data_dir)
  template = bricks.read_template(args.data_dir, names)
  stores = [bricks.open_bricks(args.data_dir, name, template) for name in names]
  if not stores:
    raise bricks.NotPreparedError(
      f'{args.data_dir}: holds no prepared source; run python -m input_pipeline.prepare first'
    )
  speed = measure(
    config, stores, batch_size=args.batch_size, seconds=args.seconds, warm_up=args.seconds / 2
  )
  print(
    f'{", ".join(names)}: {speed.patches_per_second:.1f} {"plain" if args.plain else "augmented"} '
    f'patches of {args.patch}^3 a second, {speed.read_amplification:.1f} voxels read for each one '
    f'used, {speed.peak_memory / 1e9:.2f} GB of memory'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
