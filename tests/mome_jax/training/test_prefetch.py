import contextlib
import itertools
import threading
import time

import pytest

from mome_jax.training.prefetch import prefetch


def names():
  return [t.name for t in threading.enumerate() if t.name.startswith('prefetch')]


def wait_until(true):
  end = time.monotonic() + 60
  while not true():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.parametrize('ahead', [0, 1, 3])
def test_same_items_in_the_same_order(ahead):
  assert list(prefetch(range(50), ahead)) == list(range(50))
  assert list(prefetch([], ahead)) == []
  assert not names()


def test_as_far_ahead_as_asked_and_no_further():
  made = []
  with contextlib.closing(prefetch((made.append(i) or i for i in itertools.count()), 2)) as items:
    assert not made
    for i in range(5):
      assert next(items) == i
      wait_until(lambda taken=i + 1: len(made) == taken + 2)
    time.sleep(0.05)
    assert made == list(range(7))


def test_the_thread_works_while_the_loop_does():
  """Each side waits for the other one to be at work: without a thread this ends at the barrier."""
  both = threading.Barrier(2, timeout=60)

  def source():
    yield 0
    both.wait()
    yield 1

  items = prefetch(source(), 1)
  assert next(items) == 0
  both.wait()
  assert list(items) == [1]


def test_errors_come_in_their_place():
  def source():
    yield 1
    yield 2
    raise KeyError('broken record')

  items = prefetch(source(), 3)
  assert [next(items), next(items)] == [1, 2]
  with pytest.raises(KeyError, match='broken record'):
    next(items)
  assert not names()


def test_leaving_early_ends_the_thread():
  with (
    pytest.raises(RuntimeError, match='the loop'),
    contextlib.closing(prefetch(itertools.count(), 2)) as items,
  ):
    assert next(items) == 0
    assert names()
    raise RuntimeError('the loop')
  assert not names()
