"""Commands that clean up after themselves when the system asks them to end."""

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec

P = ParamSpec('P')
PREEMPTED = 75  # exit code of what the system ended; launchers give the same command again


class Stopped(KeyboardInterrupt):
  """The system asked the process to end; `signal` is what it sent."""

  def __init__(self, number: int):
    self.signal = signal.Signals(number)
    super().__init__(self.signal.name)


def number_of(error: KeyboardInterrupt) -> signal.Signals:
  """The signal behind an interruption."""
  return getattr(error, 'signal', signal.SIGINT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
  """Lets SIGTERM and SIGHUP raise `Stopped` in the block, so that what cleans up is run.

  A handler that somebody else has set stays, and so does all outside the main thread.
  """
  numbers = []
  if threading.current_thread() is threading.main_thread():
    kinds = signal.SIGTERM, signal.SIGHUP
    numbers = [number for number in kinds if signal.getsignal(number) is signal.SIG_DFL]

  def stop(number, _):
    for each in numbers:
      signal.signal(each, signal.SIG_IGN)  # a second one would end the cleaning up
    raise Stopped(number)

  for number in numbers:
    signal.signal(number, stop)
  try:
    yield
  finally:
    for number in numbers:
      signal.signal(number, signal.SIG_DFL)


def listen(number: signal.Signals) -> None:
  """Lets a signal raise `Stopped` from now on, whatever listened before; in the main thread."""

  def stop(number, _):
    signal.signal(number, signal.SIG_IGN)  # a second one would end the cleaning up
    raise Stopped(number)

  signal.signal(number, stop)


def resumable(main: Callable[P, int]) -> Callable[P, int]:
  """A command that goes on where it was stopped, under `errors.command`: PREEMPTED on SIGTERM."""

  @functools.wraps(main)
  def run(*args: P.args, **kwargs: P.kwargs) -> int:
    try:
      return main(*args, **kwargs)
    except KeyboardInterrupt as stopped:
      if number_of(stopped) != signal.SIGTERM:
        raise
      print('stopped: asked to end; the same command goes on', file=sys.stderr, flush=True)
      return PREEMPTED

  return run
