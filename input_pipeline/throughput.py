r"""How fast prepared sources become training batches on this machine, by loader and workers.

  python -m input_pipeline.throughput --data_dir=DIR [--source=NAME ...] [--patch=96]

Prints a table: patches a second, how many voxels were read from disk for each one in a patch, and
the memory of all processes. Give it the sources and the settings of a training run; what that run
waited for is `data_wait` in its `metrics.jsonl`. Every row is measured in a process of its own,
with an empty cache of bricks.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from input_pipeline import bricks, cli, control_groups, errors
from input_pipeline.batches import dataset


@dataclasses.dataclass(frozen=True)
class Throughput:
  """What was measured.

  Attributes:
    patches_per_second: while batches are taken as fast as they come.
    read_amplification: voxels decoded from the shards for each voxel of a patch.
    peak_memory: largest resident size of the process so far and of the workers it had, bytes; pages
      that they share count for each.
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
  import resource  # Windows lacks it, and is told what to do once a command runs

  labelled = {name for store in stores for case in store.cases for name in case.labelled}
  classes = [name for name in stores[0].template.names() if name in labelled]
  batches = dataset.make_dataset(config, stores, classes, seed=0, batch_size=batch_size)
  next(batches)  # what starts the workers is no part of any rate
  for duration in (warm_up, seconds):
    taken, before, start = 0, batches.voxels_read, time.perf_counter()
    while taken == 0 or time.perf_counter() - start < duration:
      taken += len(next(batches)['label'])
    passed = time.perf_counter() - start
  voxels = taken * config.patch[0] * config.patch[1] * config.patch[2]
  amplification = (batches.voxels_read - before) / voxels
  batches.close()
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if dataset.choose_loader(config.loader) == 'grain':  # of ended processes, the largest is known
    memory += config.num_parallel * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  return Throughput(
    patches_per_second=taken / passed,
    read_amplification=amplification,
    # In bytes on macOS, in KiB elsewhere.
    peak_memory=memory * (1 if sys.platform == 'darwin' else 1024),
  )


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(prog='python -m input_pipeline.throughput', description=__doc__)
  parser.add_argument(
    '--data-dir', required=True, type=epath.Path, help='folder of all prepared sources'
  )
  parser.add_argument('--source', action='append', help='default: all with training cases')
  for option, default, text in (
    ('--patch', 96, 'voxels along an edge'),
    ('--batch-size', 8, 'patches in a batch'),
  ):
    text = f'{text} ({default})'
    parser.add_argument(option, type=cli.at_least(1), metavar='N', default=default, help=text)
  parser.add_argument(
    '--parallel',
    type=cli.at_least(1),
    action='append',
    metavar='N',
    help='patches made at the same time; may be repeated (1, 2, 4 ... up to all processors)',
  )
  parser.add_argument(
    '--loader',
    action='append',
    choices=[name for name in dataset.LOADERS if name != dataset.AUTO],
    help='what makes the batches, config.data.loader; may be repeated (all that are installed)',
  )
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
  names = args.source or bricks.training_sources(args.data_dir)
  _open(args.data_dir, names)  # what is wrong with one is told before any is measured
  chosen = args.loader or dataset.installed_loaders() or [dataset.AUTO]  # none: an error tells
  loaders = [dataset.choose_loader(name) for name in chosen]
  print(
    f'{", ".join(names)}: {"plain" if args.plain else "augmented"} patches of {args.patch}^3, '
    f'{args.cache_mb} MB of cache, {control_groups.usable_cpus()} processors\n'
  )
  print('| loader | workers | patches/s | voxels read for each one used | memory (GB) |')
  print('|:--|--:|--:|--:|--:|', flush=True)
  for loader in loaders:
    for workers in args.parallel or _doublings(control_groups.usable_cpus()):
      speed = measure_apart(args, names, loader, workers)
      print(
        f'| {loader} | {workers} | {speed.patches_per_second:.1f} | {speed.read_amplification:.1f} '
        f'| {speed.peak_memory / 1e9:.2f} |',
        flush=True,
      )
  return 0


def _open(data_dir: epath.Path, names: Sequence[str]) -> list[bricks.BrickStore]:
  template = bricks.read_template(data_dir, names)
  return [bricks.open_bricks(data_dir, name, template) for name in names]


def _doublings(most: int) -> list[int]:
  """1, 2, 4 ... and `most`."""
  return sorted({min(2**i, most) for i in range(most.bit_length() + 1)})


def measure_apart(
  args: argparse.Namespace, names: Sequence[str], loader: str, workers: int
) -> Throughput:
  """What `measure` finds in a process of its own.

  Args:
    args: of `make_parser`.
    names: of the sources.
    loader: one of `dataset.LOADERS`.
    workers: patches made at the same time.
  """
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
    return process.submit(_measure, args, names, loader, workers).result()


def _measure(
  args: argparse.Namespace, names: Sequence[str], loader: str, workers: int
) -> Throughput:
  config = ml_collections.ConfigDict(
    {
      'patch': (args.patch,) * 3,
      'windows': ((-175.0, 250.0),),
      'foreground': 0.67,
      'balance': 'sources',
      'cache_mb': args.cache_mb,
      'loader': loader,
      'num_parallel': workers,
      'augment': {'enabled': not args.plain},
    }
  )
  return measure(
    config,
    _open(args.data_dir, names),
    batch_size=args.batch_size,
    seconds=args.seconds,
    warm_up=args.seconds / 2,
  )


if __name__ == '__main__':
  sys.exit(main())
