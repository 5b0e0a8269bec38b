"""python -m mome_jax.evaluate."""

import sys

from mome_jax.evaluate import main

if __name__ == '__main__':
  sys.exit(main())
