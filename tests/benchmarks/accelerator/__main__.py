"""Everything that is measured on an accelerator, in parts of less than nine minutes that resume.

  python -m tests.benchmarks.accelerator [--parts a b c d e f g h] [--output DIR] [--data-dir DIR]

(a) numerics against the CPU; (b) the train step; (c) mixture and sparse experts; (d) a whole scan;
(e) the host's batches; (f) a training run; (g) the layers' tests; (h) the backbones in PyTorch.
Every part writes PART.json and PART.md, after each row; the same command again leaves out what is
there, and tries what failed. Needs jax, flax, optax and orbax, for (g) pytest and hypothesis, for
(h) torch, and no TensorFlow; --tiny runs all but (f) on a CPU in some minutes.
"""

import argparse
import pathlib
import subprocess
import sys

from tests.benchmarks.accelerator import (
  feed,
  inference,
  layers,
  mixture,
  numerics,
  process_group,
  pytorch,
  runner,
  training,
  training_run,
)

PARTS = {
  'a': numerics.PART,
  'b': training.PART,
  'c': mixture.PART,
  'd': inference.PART,
  'e': feed.PART,
  'f': training_run.PART,
  'g': layers.PART,
  'h': pytorch.PART,
}
_LONGEST = 530  # seconds of a part, the case that runs then included
_BEGIN = 400  # seconds after which no further case of it begins


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = argparse.ArgumentParser(
    prog='python -m tests.benchmarks.accelerator',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--parts', nargs='+', choices=PARTS, default=list('abcdegh'))
  parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/accelerator'))
  parser.add_argument('--data-dir', help='prepared sources, for e and f; by default phantoms')
  parser.add_argument('--config', default='openkbp', help='of the training run (openkbp)')
  parser.add_argument('--minutes', type=float, default=5.5, help='of the training run (5.5)')
  parser.add_argument('--repeats', type=int, default=5, help='of every measurement of time (5)')
  parser.add_argument('--tiny', action='store_true', help='sizes for a CPU')
  parser.add_argument('--here', action='store_true', help='parts in this process, without a limit')
  return parser


def main(argv: list[str] | None = None) -> int:
  """The command line; 0 if every row of the parts is there without an error."""
  parser = make_parser()
  args = parser.parse_args(argv)
  most = (_LONGEST - training_run.AROUND) / 60
  if not args.here and args.minutes > most:
    parser.error(
      f'--minutes {args.minutes:g}: with its start and end a part has {most:.1f}; --here'
    )
  if not args.tiny and runner.devices()[0] == 'cpu':
    parser.error(
      'jax sees no accelerator; install its build for the device (BUILD.md), or try the programs '
      'with --tiny'
    )
  args.output.mkdir(parents=True, exist_ok=True)
  if args.here:
    complete = [_run(name, args) for name in args.parts]
    return 0 if all(complete) else 1
  words = sys.argv[1:] if argv is None else argv
  complete = [_run_apart(name, words) for name in args.parts]
  return 0 if all(complete) else 1


def _run_apart(name: str, words: list[str]) -> bool:
  """Runs a part in a process of its own: what it leaves on the device is gone with it."""
  command = [sys.executable, '-m', 'tests.benchmarks.accelerator', *words]
  try:
    code = process_group.run([*command, '--parts', name, '--here'], _LONGEST)
  except subprocess.TimeoutExpired:
    print(f'{name}: stopped after {_LONGEST} s; the same command goes on', flush=True)
    return False
  if code < 0:
    print(f'{name}: ended by signal {-code}; the same command goes on', flush=True)
  return code == 0


def _run(name: str, args: argparse.Namespace) -> bool:
  from mome_jax.runtime import compilation

  compilation.use_cache()  # what a stopped part compiled is not compiled again
  settings = runner.Settings(
    args.output, args.tiny, args.data_dir, args.repeats, args.minutes, args.config
  )
  return runner.run(name, PARTS[name], settings, limit=_BEGIN)


if __name__ == '__main__':
  sys.exit(main())
