"""`python -m mome_jax` is the console command `mome`."""

import sys

from mome_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
