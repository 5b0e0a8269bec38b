r"""What each augmentation of a training patch costs: CPU milliseconds more than a plain patch.

  OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/augmentation.py \
      --data_dir=runs/data --source=phantom_organs

Every augmentation alone, at its full range, on patches of a prepared source whose bricks are in
memory; medians, in turns with plain patches. Last the plain patches themselves, and what is drawn
by default and by `few_scans`, on average, as each happens now and then. One thread of linear
algebra: others wait busily and count. Prints a Markdown table.
"""

import argparse
import statistics
import time

import ml_collections

from input_pipeline import bricks
from input_pipeline.batches import augment
from input_pipeline.batches.sampler import PatchSampler
from mome_jax.configs import few_scans

_MORE = 10  # times as many patches for what is drawn only now and then


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data_dir', default='runs/data')
  parser.add_argument('--source', required=True)
  parser.add_argument('--patch', type=int, nargs='+', default=[96, 40], help='voxels along a side')
  parser.add_argument('--patches', type=int, default=15, help='of each kind')
  args = parser.parse_args()
  store = bricks.open_bricks(args.data_dir, args.source)
  switches = [field for field in augment.DEFAULTS if field.startswith('p_')]
  print('| alone | ' + ' | '.join(f'{side}^3 (ms)' for side in args.patch) + ' |')
  print('|:--|' + '--:|' * len(args.patch))
  columns = [
    added(store, switches, side, args.patches) | mixed(store, switches, side, _MORE * args.patches)
    for side in args.patch
  ]
  for name in columns[0]:
    cells = ' | '.join(f'{column[name]:.1f}' for column in columns)
    print(f'| {name.removeprefix("p_")} | {cells} |')


def added(
  store: bricks.BrickStore, switches: list[str], side: int, patches: int
) -> dict[str, float]:
  """Median CPU ms of a patch beyond those of the same plain patch, by augmentation."""
  off = dict.fromkeys(switches, 0.0)
  plain = sampler(store, side, off)
  more = {}
  for switch in switches:
    alone = sampler(store, side, off | {switch: 1.0})
    differences = []
    for number in range(patches):
      for one in (plain, alone):
        one.sample(0, number)  # its bricks are decoded
      differences.append(milliseconds(alone, 0, number) - milliseconds(plain, 0, number))
    more[switch] = statistics.median(differences)
  return more


def mixed(
  store: bricks.BrickStore, switches: list[str], side: int, patches: int
) -> dict[str, float]:
  """Mean CPU ms of a plain patch, and of what mixtures of augmentations add to it."""
  mixtures = {
    'a plain patch': dict.fromkeys(switches, 0.0),
    'by default': {},
    'few_scans': few_scans.AUGMENTATION,
  }
  samplers = {name: sampler(store, side, mixture) for name, mixture in mixtures.items()}
  times: dict[str, list[float]] = {name: [] for name in mixtures}
  for number in range(patches):
    for name, one in samplers.items():
      one.sample(number, 0)  # its bricks are decoded
      times[name].append(milliseconds(one, number, 0))
  plain, *others = [statistics.mean(some) for some in times.values()]
  return dict(zip(mixtures, [plain, *(other - plain for other in others)], strict=True))


def sampler(store: bricks.BrickStore, side: int, augmentation: dict) -> PatchSampler:
  """Draws patches of `side` voxels with two HU windows."""
  names = sorted({name for case in store.cases for name in case.labelled})
  config = ml_collections.ConfigDict(
    {
      'patch': (side,) * 3,
      'windows': ((-175.0, 250.0), (-1000.0, 1000.0)),
      'foreground': 1.0,
      'balance': 'sources',
      'cache_mb': 1024,
      'augment': augmentation,
    }
  )
  return PatchSampler(config, [store], names)


def milliseconds(one: PatchSampler, index: int, seed: int) -> float:
  """CPU time of a patch."""
  start = time.process_time()
  one.sample(index, seed)
  return 1000 * (time.process_time() - start)


if __name__ == '__main__':
  main()
