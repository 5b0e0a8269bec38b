"""Making what a loop needs next while the devices are busy with what it has."""

import collections
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar('T')
_END = object()


def prefetch(items: Iterable[T], ahead: int) -> Generator[T, None, None]:
  """The same items in the same order, made by a thread of their own.

  Nothing is made before the first item is asked for. Close the generator (`contextlib.closing`)
  where a loop may leave it early: it then waits for the one item that is being made.

  Args:
    items: to draw from; used by the thread alone.
    ahead: how many are made before they are asked for, and so kept in memory.

  Yields:
    The items; what their iterator raises is raised in its place.
  """
  source = iter(items)
  with ThreadPoolExecutor(1, 'prefetch') as thread:
    try:
      pending: collections.deque[Future[Any]]  # of items, or _END
      pending = collections.deque(thread.submit(next, source, _END) for _ in range(ahead))
      while True:
        # The next one is asked for before this one is waited for: the thread never runs dry.
        pending.append(thread.submit(next, source, _END))
        item = pending.popleft().result()
        if item is _END:
          return
        yield item
    finally:
      thread.shutdown(cancel_futures=True)
