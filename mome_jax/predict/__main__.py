"""python -m mome_jax.predict."""

import sys

from mome_jax.predict.command import main, make_parser

__all__ = ['main', 'make_parser']

if __name__ == '__main__':
  sys.exit(main())
