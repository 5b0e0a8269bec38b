"""Progress bars that also suit a log file."""

import sys
from collections.abc import Iterable
from typing import TextIO

import tqdm

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
