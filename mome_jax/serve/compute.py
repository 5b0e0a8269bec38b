"""The one line of work: jobs are done one after the other, and any of them can be cancelled."""

import itertools
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from mome_jax.errors import UserError, reason
from mome_jax.runtime import process

_WAITING = 32  # jobs
_KEPT = 200  # jobs that are over and can still be asked about
OVER = ('done', 'failed', 'cancelled')


class BusyError(UserError):
  """Too many jobs wait."""


class Cancelled(Exception):
  """A job was told to stop."""


class Job:
  """A piece of work.

  Attributes:
    number: of it.
    about: what it is for: fields of its state.
    state: 'waiting', 'running', 'done', 'failed' or 'cancelled'.
    ready: names of what can be shown already.
  """

  def __init__(self, number: int, work: Callable[['Job'], object], about: dict[str, Any]):
    self.number, self.about = number, about
    self.state, self.message, self.stage = 'waiting', '', ''
    self.ready: list[str] = []
    self._work: Callable[[Job], object] | None = work
    self._windows = 0, 0
    self._stop = threading.Event()

  @property
  def is_over(self) -> bool:
    """Whether nothing more will happen to it."""
    return self.state in OVER

  def cancel(self) -> None:
    """Ends it: at once if it waits, at the next window if it runs."""
    self._stop.set()
    if self.state == 'waiting':
      self._become('cancelled')

  def check(self) -> None:
    """Raises Cancelled once it is to end."""
    if self._stop.is_set():
      raise Cancelled

  def enter(self, stage: str) -> None:
    """Tells what is done from now on, in a few words."""
    self.check()
    self.stage, self._windows = stage, (0, 0)

  def progress(self, done: int, total: int) -> None:
    """Tells how many windows of the stage are done."""
    self.check()
    self._windows = done, total

  def show(self, names: list[str]) -> None:
    """Tells what can be shown already."""
    self.ready = names

  def told(self) -> dict[str, Any]:
    """Its state, fit for JSON."""
    done, total = self._windows
    return {
      'job': self.number,
      **self.about,
      'state': self.state,
      'stage': self.stage,
      'windows_done': done,
      'windows': total,
      'ready': self.ready,
      'message': self.message,
    }

  def run(self) -> None:
    """Does it; what goes wrong is told in its state."""
    work = self._work
    if self._stop.is_set() or work is None:
      return
    self._become('running')
    try:
      work(self)
    except Cancelled:
      self._become('cancelled')
    except Exception as error:  # it must not end the line
      if not isinstance(error, UserError):  # a fault of this program, to be reported
        traceback.print_exc()
      self.message = reason(error)
      self._become('failed')
    else:
      self._become('done')

  def _become(self, state: str) -> None:
    self.state = state
    if self.is_over:
      self._work = None  # it holds a scan


class Line:
  """Jobs in the order in which they came, done by one thread."""

  def __init__(self) -> None:
    self._jobs: dict[int, Job] = {}
    self._numbers = itertools.count(1)
    self._change = threading.Condition()
    self._closed = False
    self._thread = threading.Thread(target=self._work, name='compute', daemon=True)
    self._thread.start()

  def add(self, work: Callable[[Job], object], **about: Any) -> Job:
    """Puts a job at the end of the line.

    Args:
      work: called with the job, whose `check` it calls often.
      **about: what it is for.

    Raises:
      BusyError: if too many wait.
    """
    with self._change:
      waiting = sum(job.state == 'waiting' for job in self._jobs.values())
      if waiting >= _WAITING:
        raise BusyError(f'{waiting} prompts wait already; cancel some, or come back later')
      job = Job(next(self._numbers), work, about)
      self._jobs[job.number] = job
      over = [number for number, one in self._jobs.items() if one.is_over]
      for number in over[:-_KEPT]:
        del self._jobs[number]
      self._change.notify()
    return job

  def get(self, number: int) -> Job | None:
    """A job by its number."""
    return self._jobs.get(number)

  def before(self, job: Job) -> int:
    """How many jobs come before it."""
    return sum(not one.is_over for one in self._all() if one.number < job.number)

  def of(self, **about: Any) -> list[Job]:
    """Jobs that are for something and not over."""
    fits = lambda job: about.items() <= job.about.items() and not job.is_over
    return [job for job in self._all() if fits(job)]

  def close(self, seconds: float = 10.0) -> bool:
    """Cancels all jobs and waits a while for the one that runs; whether it has ended."""
    with self._change:
      self._closed = True
      for job in self._all():
        job.cancel()
      self._change.notify()
    self._thread.join(seconds)
    return not self._thread.is_alive()

  def _all(self) -> list[Job]:
    return list(self._jobs.values())

  def _next(self) -> Iterator[Job]:
    return (job for job in self._all() if job.state == 'waiting')

  def _work(self) -> None:
    while True:
      with self._change:
        self._change.wait_for(lambda: self._closed or any(self._next()))
        if self._closed:
          return
        job = next(self._next(), None)
      if job is not None:  # it may have been cancelled since
        job.run()
        process.release()
