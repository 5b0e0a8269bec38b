"""The one base of every mistake that a user can mend."""

from input_pipeline.errors import (
  UserError,
  command,
  few,
  install,
  lacking,
  one_line,
  printable,
  reading,
  reason,
  suggest,
  writing,
)

__all__ = [
  'ConfigError',
  'UserError',
  'command',
  'few',
  'install',
  'lacking',
  'one_line',
  'printable',
  'reading',
  'reason',
  'suggest',
  'writing',
]


class ConfigError(UserError):
  """A value of the config that cannot be; the message names it and what was expected."""
