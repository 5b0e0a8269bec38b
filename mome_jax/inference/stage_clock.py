"""Where the time of a scan goes, and what else is counted of it."""

import collections
import contextlib
import time
from collections.abc import Iterator


class Clock:
  """Adds up wall seconds by stage; a stage inside another counts for the inner one only."""

  def __init__(self) -> None:
    self._seconds: dict[str, float] = collections.defaultdict(float)
    self._running: list[str] = []
    self._since = 0.0
    self._counts: dict[str, int] = collections.defaultdict(int)

  @contextlib.contextmanager
  def __call__(self, stage: str) -> Iterator[None]:
    """Counts the block as `stage`."""
    self._lap()
    self._running.append(stage)
    try:
      yield
    finally:
      self._lap()
      self._running.pop()

  def _lap(self) -> None:
    now = time.perf_counter()
    if self._running:
      self._seconds[self._running[-1]] += now - self._since
    self._since = now

  def count(self, what: str, number: int = 1) -> None:
    """Adds to a counter: 'windows', 'bytes_to_device', 'bytes_from_device', 'compilations'."""
    self._counts[what] += int(number)

  def counts(self) -> dict[str, int]:
    """What was counted."""
    return dict(self._counts)

  def seconds(self) -> dict[str, float]:
    """Seconds of each stage, rounded to milliseconds."""
    return {stage: round(value, 3) for stage, value in self._seconds.items()}
