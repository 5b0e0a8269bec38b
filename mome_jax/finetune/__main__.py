"""python -m mome_jax.finetune."""

import sys

from mome_jax.finetune.command import main, make_parser

__all__ = ['main', 'make_parser']

if __name__ == '__main__':
  sys.exit(main())
