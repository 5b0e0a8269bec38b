"""Teaches the small text encoder anatomy: names, synonyms, sides, what contains what.

  python -m mome_jax.text.pretrain [--output FOLDER]

Takes two and a half minutes on two cores, and writes a model folder of the text encoder alone, as
that which comes with the package (`mome_jax/assets/text`), where joint training starts by default.
The same seed gives the same encoder on the same machine.

--leave-out-sides measures what the encoder makes of words it knows in a company that it does not:
of every fifth paired organ the left one is never shown. Nothing is written then.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from input_pipeline import errors
from input_pipeline.cli import Parser, at_least, dashed

STEPS = 1500


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.text.pretrain', description=__doc__)
  parser.add_argument('--output', type=pathlib.Path, help='folder to write; without it, nothing is')
  parser.add_argument('--steps', type=at_least(1), default=STEPS, help=f'of training ({STEPS})')
  parser.add_argument('--seed', type=at_least(0), default=0)
  parser.add_argument('--leave-out-sides', action='store_true', help='see above')
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.text import teaching

  teaching.run(args.output, steps=args.steps, seed=args.seed, leave_out_sides=args.leave_out_sides)
  return 0


if __name__ == '__main__':
  sys.exit(main())
