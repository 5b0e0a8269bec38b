"""python -m mome_jax.dicom_node."""

import sys

from mome_jax.dicom_node.command import main, make_parser

__all__ = ['main', 'make_parser']

if __name__ == '__main__':
  sys.exit(main())
