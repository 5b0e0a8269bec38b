"""Progress bars that also suit a log file."""

import datetime
import sys
import time
from collections.abc import Iterable
from typing import TextIO

import tqdm

_MEASURED = 5.0  # seconds, after which it is told how long the rest takes
_TOLD = 15.0  # seconds of the rest, below which it is not worth a line
_SECONDS = 30.0  # between two lines where no terminal redraws one


def bar(iterable: Iterable | None = None, **options) -> tqdm.tqdm:
  """A `tqdm.tqdm` on the standard error.

  A terminal redraws it ten times a second. Anywhere else, in a log file say, it is a line of its
  own at the start, every 30 seconds and at the end.

  Args:
    iterable: as of tqdm.
    **options: as of tqdm.
  """
  if sys.stderr.isatty():
    return tqdm.tqdm(iterable, **options)
  seconds = {'mininterval': _SECONDS, 'maxinterval': _SECONDS}
  return _LoggedBar(iterable, file=_Lines(sys.stderr), **seconds, **options)


def line(text: str, file: TextIO | None = None) -> None:
  """Prints a line, on the standard output by default; a bar that a terminal shows moves below."""
  tqdm.tqdm.write(text, file=file)


def in_words(seconds: float) -> str:
  """'25 s', '4 min', '2.6 h', '3.1 days': two digits."""
  for unit, size in (('days', 86400), ('h', 3600), ('min', 60)):
    if seconds >= 1.5 * size:
      number = seconds / size
      return f'{number:.0f} {unit}' if number >= 10 or unit == 'min' else f'{number:.1f} {unit}'
  return f'{seconds:.0f} s'


def until(seconds: float, now: datetime.datetime | None = None) -> str:
  """When so many seconds are over, by the clock of this machine: 'until 16:42'.

  Args:
    seconds: from now on.
    now: the time; None: that of the clock.
  """
  now = now or datetime.datetime.now()
  end = now + datetime.timedelta(seconds=seconds)
  return end.strftime('until %H:%M' if end.date() == now.date() else 'until %a %d %b, %H:%M')


class Clock:
  """Tells once how long what is left of many things takes, by those that are done.

  Args:
    total: how many there are.
    things: what they are: 'cases', say.
  """

  def __init__(self, total: int, things: str):
    self._total, self._things = total, things
    self._done, self._is_told = 0, False
    self._since = self._first = time.monotonic()

  def after_one(self) -> str:
    """The line, once enough is known; '' before and after, and where little is left."""
    now = time.monotonic()
    self._done += 1
    if self._done == 1:
      self._first = now
    if self._is_told or now - self._since < _MEASURED:
      return ''
    self._is_told = True
    # The first pays for what is loaded, so that the others alone count where there are any.
    each = (now - self._first) / (self._done - 1) if self._done > 1 else now - self._since
    left = self._total - self._done
    seconds = each * left
    if seconds < _TOLD:
      return ''
    return (
      f'{left} {self._things} are left: about {in_words(seconds)} at {each:.2g} s each, '
      f'{until(seconds)}'
    )


class _LoggedBar(tqdm.tqdm):
  """Not written anew for what stands beside it."""

  def set_postfix(self, ordered_dict=None, refresh=True, **values):
    super().set_postfix(ordered_dict, refresh=False, **values)

  def set_description(self, desc=None, refresh=True):
    super().set_description(desc, refresh=False)


class _Lines:
  """A stream that takes states of a bar, each drawn over the one before, as lines."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> None:
    state = text.replace('\x1b[A', '').strip()  # of a bar above others: up one line
    if state:
      self._stream.write(f'{state}\n')

  def __getattr__(self, name: str):
    return getattr(self._stream, name)
