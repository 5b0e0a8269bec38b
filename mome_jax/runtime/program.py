"""A program of this package that another one runs and waits for."""

import signal
import subprocess
import sys


def run(module: str, *words: str) -> int:
  """Runs a module in a process of its own, which gets to know what this one is asked to do.

  Args:
    module: as of `python -m`.
    *words: its arguments.

  Returns:
    The exit code, as shells have it: 128 and the number of a signal that ended the process. A
    SIGTERM that came before the program knew what to do, or when it had done all, comes again.

  Raises:
    KeyboardInterrupt: if Control-C came when it had done all.
  """
  asked: list[int] = []
  interruption: KeyboardInterrupt | None = None
  process: subprocess.Popen | None = None

  def pass_on(number, _):
    asked.append(number)
    if process is not None:
      process.send_signal(number)

  before = signal.signal(signal.SIGTERM, pass_on)  # from before there is a program to leave behind
  try:
    with subprocess.Popen([sys.executable, '-m', module, *words]) as process:
      if asked:
        process.send_signal(signal.SIGTERM)
      while process.returncode is None:
        try:
          process.wait()
        except KeyboardInterrupt as error:  # the program got it too, and saves
          interruption = error
  finally:
    signal.signal(signal.SIGTERM, before)
  code = process.returncode
  code = code if code >= 0 else 128 - code
  if asked and code in (0, 128 + signal.SIGTERM):
    signal.raise_signal(signal.SIGTERM)
  if interruption is not None and not code:
    raise interruption
  return code
