"""python -m mome_jax.predict."""

import sys

from mome_jax.predict import main

if __name__ == '__main__':
  sys.exit(main())
