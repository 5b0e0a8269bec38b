"""Trains, scores and times the peers of MoME in PyTorch.

  python -m tests.benchmarks.peers train dynunet --workdir=runs/peer_dynunet --steps=N
  python -m tests.benchmarks.peers time dynunet swinunetr

train: with the data, sampling and augmentation of an experiment, for --steps or --minutes, then the
scores of the held-out scans; the same command resumes. Two runs are compared by
`python -m mome_jax.evaluate compare runs/openkbp_cpu runs/peer_dynunet`.
time: seconds of a training step, data included, and the steps that fit into --minutes.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

# TensorFlow, which feeds the patches, reads these when it is first imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import torch

from input_pipeline.bricks import NotPreparedError
from tests.benchmarks.peers import machine, scoring, training
from tests.benchmarks.peers.recipes import EXPERIMENT, RECIPES, make_config


def _config(args, peer: str):
  return make_config(peer, args.config, data_dir=args.data_dir, source=args.source, seed=args.seed)


def train(args) -> None:
  """Trains a peer and scores it."""
  config = _config(args, args.peer)
  budget = {'steps': args.steps, 'minutes': args.minutes}
  trainer = training.train(args.peer, config, args.workdir, device=args.device, **budget)
  print(scoring.score(trainer, config, args.workdir, limit=args.limit))


def measure(args) -> None:
  """Prints a Markdown table of the peers' step times."""
  print(f'{torch.get_num_threads()} threads, {args.device}\n')
  print(f'| peer | parameters | step, s | steps in {args.minutes:g} min |\n|:--|--:|--:|--:|')
  for name in args.peers:
    config = _config(args, name)
    trainer = training.make_trainer(name, config, args.device)
    batches = training.make_batches(config)
    seconds = []
    began = time.perf_counter()
    while len(seconds) < 6 or time.perf_counter() - began < args.seconds:
      start = time.perf_counter()
      float(trainer.update(next(batches), progress=0.5)['loss'])
      seconds.append(time.perf_counter() - start)
    mean = statistics.mean(seconds[3:])
    count = sum(p.numel() for p in trainer.network.parameters())
    print(f'| {name} | {count:,} | {mean:.3f} | {60 * args.minutes / mean:.0f} |', flush=True)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m tests.benchmarks.peers',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument('--data_dir', default='runs/data')
  shared.add_argument('--config', default=EXPERIMENT, help='experiment whose data is taken')
  shared.add_argument(
    '--source', default='', help='prepared, in place of its own; openkbp_tune to choose with'
  )
  shared.add_argument('--seed', type=int, default=0)
  shared.add_argument('--threads', type=int, default=2, help='of PyTorch')
  commands = parser.add_subparsers(dest='command', required=True)
  training_ = commands.add_parser('train', parents=[shared])
  training_.add_argument('peer', choices=RECIPES)
  training_.add_argument('--workdir', type=pathlib.Path, required=True)
  budget = training_.add_mutually_exclusive_group(required=True)
  budget.add_argument('--steps', type=int, default=0)
  budget.add_argument('--minutes', type=float, default=0.0, help='of training, by the clock')
  training_.add_argument('--limit', type=int, help='scans to score; default: all')
  timing = commands.add_parser('time', parents=[shared])
  timing.add_argument('peers', nargs='+', choices=RECIPES)
  timing.add_argument('--minutes', type=float, default=27.5, help='of training')
  timing.add_argument('--seconds', type=float, default=45.0, help='to measure each peer')
  return parser.parse_args()


def main() -> None:
  """Command line."""
  args = _parse()
  args.device = machine.prepare(args.threads)
  try:
    {'train': train, 'time': measure}[args.command](args)
  except (NotPreparedError, ValueError, FloatingPointError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
