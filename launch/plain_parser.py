"""Command lines of the launchers; only Python itself is needed, of any version."""

from __future__ import annotations

import argparse


class Parser(argparse.ArgumentParser):
  """Shows defaults in its help; errors take one line, as those of the other commands."""

  def __init__(self, description: str):
    super().__init__(
      description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )

  def error(self, message: str):
    """Ends the program with 2."""
    self.exit(2, f'error: {message} ({self.prog} --help lists the options)\n')
