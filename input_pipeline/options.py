"""What the command lines share."""

import argparse
import sys
from collections.abc import Sequence


def dashed(argv: Sequence[str] | None) -> list[str]:
  """The arguments (None: of this process) with options spelled with dashes; underscores pass."""
  words = []
  for word in sys.argv[1:] if argv is None else argv:
    option, equals, value = word.partition('=')
    words.append(option.replace('_', '-') + equals + value if word.startswith('--') else word)
  return words


def spacing(text: str) -> tuple[float, float, float]:
  """'X,Y,Z' or one number, in mm; ArgumentTypeError for anything else."""
  try:
    numbers = [float(part) for part in text.split(',')]
  except ValueError:
    numbers = []
  if len(numbers) not in (1, 3) or not all(0 < mm < 100 for mm in numbers):
    raise argparse.ArgumentTypeError(f'{text!r}: expected X,Y,Z or one number, in mm')
  return tuple(numbers * 3 if len(numbers) == 1 else numbers)
