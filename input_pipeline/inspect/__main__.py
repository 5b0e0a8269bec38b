"""python -m input_pipeline.inspect."""

import sys

from input_pipeline.inspect.command import main, make_parser

__all__ = ['main', 'make_parser']

if __name__ == '__main__':
  sys.exit(main())
