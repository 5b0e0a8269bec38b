"""Time and memory of MoME and its peers on the same scan and the same cores.

  python -m tests.benchmarks.peers.speed runs/openkbp_cpu runs/peer_dynunet runs/peer_swinunetr

One held-out scan from its HU to the masks on its own grid, with the windows, overlap and rules that
each run is scored with; and one optimizer step on a batch in memory, with the patch that each was
trained with. Every measurement has a process of its own, which sees no TensorFlow and no other
framework; its highest resident size is the memory (on a GPU: what the framework says of the
device). FLOP are those of matrix products and convolutions. Prints two Markdown tables; ratios are
to the first run.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Callable

import numpy as np

from tests.benchmarks.peers import measurements


def isolated(function: Callable[..., dict], *args) -> dict:
  """The result of a function in a fresh process."""
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(function, args)


def read_data(args) -> tuple[np.ndarray, tuple[float, ...], Callable[[tuple, int], dict]]:
  """HU and spacing of a scan, and (patch, batch size) -> a training batch."""
  from input_pipeline import bricks
  from input_pipeline.batches import dataset
  from mome_jax.configs import openkbp_cpu

  config = openkbp_cpu.get_config()
  template = bricks.read_template(args.data_dir, (args.source,), ())
  case = bricks.open_volumes(args.data_dir, args.source, template)[args.case]
  stores = [bricks.open_bricks(args.data_dir, args.source, template)]

  @functools.cache
  def batch(patch, size):
    config.data.patch = patch
    return next(dataset.make_dataset(config.data, stores, config.classes, seed=0, batch_size=size))

  return case.image, case.geometry.spacing, batch


def _patch_and_batch(run: str) -> tuple[tuple[int, ...], int]:
  if _is_peer(run):
    import torch

    from tests.benchmarks.peers.recipes import RECIPES

    saved = torch.load(pathlib.Path(run, measurements.CHECKPOINT), map_location='cpu')
    recipe = RECIPES[saved['settings']['peer']]
    return recipe.patch, recipe.batch_size
  from mome_jax import checkpoint

  config = checkpoint.load_config(run)
  return tuple(config.data.patch), config.train.batch_size


def compare_inference(args, image: np.ndarray, spacing) -> None:
  """Prints the first table."""
  shape = ' x '.join(map(str, image.shape))
  print(f'A scan of {shape} voxels; {len(os.sched_getaffinity(0))} cores\n')
  print('| run | parameters | window | windows | first, s | scan, s | ratio | network, s |', end='')
  print(' resample, s | blend, s | rules, s | GFLOP/s of network | memory, GB |')
  print('|:--|--:|:--|' + '--:|' * 10)
  reference = None
  for run in args.runs:
    measure = measurements.segment_peer if _is_peer(run) else measurements.segment_ours
    row = isolated(measure, run, image, spacing, args.repeats)
    reference = reference or row['seconds']
    speed = row['flop'] * row['windows'] / row['network'] / 1e9
    cells = [pathlib.Path(run).name, f'{row["parameters"]:,}', _size(row['patch']), row['windows']]
    cells += [row['first'], row['seconds'], row['seconds'] / reference]
    cells += [*(row[stage] for stage in measurements.STAGES), f'{speed:.0f}', row['memory'] / 1e9]
    _print_row(cells)


def compare_steps(args, batch: Callable[[tuple, int], dict]) -> None:
  """Prints the second table."""
  print('\n| run | patch | batch | first, s | step, s | patches/s | ratio |', end='')
  print(' million voxels/s | GFLOP | GFLOP/s | memory, GB |\n|:--|:--|' + '--:|' * 9)
  reference = None
  for run in args.runs:
    patch, size = _patch_and_batch(run)
    measure = measurements.step_peer if _is_peer(run) else measurements.step_ours
    row = isolated(measure, run, batch(patch, size), args.repeats)
    rate, gflop = size / row['seconds'], row['flop'] / 1e9
    reference = reference or rate
    cells = [pathlib.Path(run).name, _size(patch), size, row['first'], row['seconds'], rate]
    cells += [rate / reference, rate * np.prod(patch) / 1e6]
    _print_row([*cells, f'{gflop:.1f}', f'{gflop / row["seconds"]:.0f}', row['memory'] / 1e9])


def _is_peer(run: str) -> bool:
  return pathlib.Path(run, measurements.CHECKPOINT).is_file()


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', help='workdirs of MoME and of peers')
  parser.add_argument('--data_dir', default='runs/data')
  parser.add_argument('--source', default='openkbp')
  parser.add_argument('--case', type=int, default=0, help='number of the held-out scan')
  parser.add_argument('--threads', type=int, default=2, help='cores of every process')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--only', choices=('inference', 'training'))
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  image, spacing, batch = read_data(args)
  if args.only != 'training':
    compare_inference(args, image, spacing)
  if args.only != 'inference':
    compare_steps(args, batch)


def _size(patch) -> str:
  return ' x '.join(map(str, patch))


def _print_row(cells) -> None:
  text = (f'{cell:.2f}' if isinstance(cell, float) else str(cell) for cell in cells)
  print(f'| {" | ".join(text)} |', flush=True)


if __name__ == '__main__':
  main()
