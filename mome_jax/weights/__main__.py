"""python -m mome_jax.weights."""

import sys

from mome_jax.weights.command import main, make_parser

__all__ = ['main', 'make_parser']

if __name__ == '__main__':
  sys.exit(main())
