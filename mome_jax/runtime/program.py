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
    The exit code, as shells have it: 128 and the number of a signal that ended the process.
  """
  with subprocess.Popen([sys.executable, '-m', module, *words]) as process:
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
      while True:
        with contextlib.suppress(KeyboardInterrupt):  # the process got it too, and saves
          code = process.wait()
          return code if code >= 0 else 128 - code
    finally:
      signal.signal(signal.SIGTERM, before)
