"""The one base of every mistake that a user can mend."""


class UserError(ValueError):
  """What was asked for cannot be done; one line that names the file or value, and the fix.

  Commands print it without a traceback and end with exit code 1. Any other exception is a fault of
  this program and keeps its traceback.
  """
