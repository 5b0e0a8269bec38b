"""Processes that end with all that they have started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from input_pipeline import stopping

_TICK = 0.05  # seconds between looks
_GRACE = 10.0  # seconds from SIGTERM to SIGKILL


def run(command: Sequence[str], limit: float, grace: float = _GRACE) -> int:
  """Runs a command; returns its exit code, below 0 where a signal ended it.

  Whatever ends this call, a time limit, Control-C or SIGTERM, nothing is left of what it started.

  Args:
    command: with its arguments.
    limit: seconds.
    grace: seconds that what is left at the end has to end by itself.

  Raises:
    subprocess.TimeoutExpired: if it took longer.
  """
  with (
    stopping.stoppable(),
    subprocess.Popen(command, start_new_session=True) as process,
  ):
    try:
      return process.wait(limit)
    finally:
      _end(process, grace)


def _end(process: subprocess.Popen, grace: float) -> None:
  with contextlib.suppress(ProcessLookupError):  # of a group that is gone
    os.killpg(process.pid, signal.SIGTERM)
    last = time.monotonic() + grace
    while time.monotonic() < last:
      process.poll()  # it would stay in the group
      os.killpg(process.pid, 0)
      time.sleep(_TICK)
    os.killpg(process.pid, signal.SIGKILL)
