"""A program of this package that another one runs and waits for."""

import contextlib
import signal
import subprocess
import sys


def run(module: str, *words: str) -> int:
  """Runs a module in a process of its own, which gets to know what this one is asked to do.

  Args:
    module: as of `python -m`.
    *words: its arguments.

  Returns:
    The exit code, as shells have it: 128 and the number of a signal that ended the process. If that
    was a SIGTERM passed on before the program knew what to do, this process gets it again.
  """
  asked = []

  def pass_on(number, _):
    asked.append(number)
    process.send_signal(number)

  with subprocess.Popen([sys.executable, '-m', module, *words]) as process:
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
      while process.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):  # the process got it too, and saves
          process.wait()
    finally:
      signal.signal(signal.SIGTERM, before)
  code = process.returncode
  code = code if code >= 0 else 128 - code
  if asked and code == 128 + signal.SIGTERM:
    signal.raise_signal(signal.SIGTERM)
  return code
