"""python -m mome_jax.reproduce."""

import sys

from mome_jax.reproduce.command import main, make_parser

__all__ = ['main', 'make_parser']

if __name__ == '__main__':
  sys.exit(main())
