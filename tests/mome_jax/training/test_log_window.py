"""What a row of the log says of the steps before it."""

import threading
import time
import types

import numpy as np
import pytest

from mome_jax.training.log_window import LogWindow, NonFiniteLossError


def step(loss, norm=1.0, **more):
  return {'loss': np.float32(loss), 'grad_norm': np.float32(norm), **more}


@pytest.fixture
def clock(monkeypatch):
  clock = types.SimpleNamespace(now=10.0)
  monkeypatch.setattr(time, 'perf_counter', lambda: clock.now)
  return clock


def test_a_row_holds_means_and_where_the_time_went(clock):
  window = LogWindow(batch_size=3)

  def words():
    for word in 'ab':
      clock.now += 1
      yield word

  feed = words()
  for loss, word in ((1.0, 'a'), (2.0, 'b')):
    assert window.next(feed) == word
    window.add(step(loss, load=np.array([loss, 0.0])))
    window._done.result()  # at once: then the host is busy
    clock.now += 1.5
  row = window.row(last=8)
  assert row['loss'] == 1.5
  np.testing.assert_array_equal(row['load'], [1.5, 0.0])
  # Five seconds in all, one of waiting in each of two steps, six patches.
  assert row['data_wait'] == pytest.approx(2 / 5)
  assert row['seconds_per_step'] == pytest.approx(5 / 2)
  assert row['patches_per_second'] == pytest.approx(6 / 5)
  window.restart()
  window.add(step(7.0))
  clock.now += 1
  assert window.row(last=9)['loss'] == 7.0


def test_no_waiting_for_data_is_that_of_the_host_while_devices_compute(clock):
  """Batches that take a third longer than a step cost a quarter of the time, not all of it."""
  window, computed = LogWindow(batch_size=1), threading.Event()

  class Computing(np.ndarray):
    def block_until_ready(self):
      computed.wait()

  def words():
    yield 'a'
    clock.now += 3
    computed.set()
    window._done.result()  # it is noted
    clock.now += 1
    yield 'b'

  feed = words()
  window.next(feed)
  window.add({**step(1.0), 'loss': np.ones((), np.float32).view(Computing)})
  window.next(feed)
  window.add(step(1.0))
  assert window.row(last=2)['data_wait'] == pytest.approx(1 / 4)


@pytest.mark.parametrize('bad', [step(np.nan), step(1.0, np.inf)])
def test_a_step_that_is_not_finite_is_named(bad):
  window = LogWindow(batch_size=1)
  for metrics in (step(1.0), bad, step(1.0)):
    window.add(metrics)
  with pytest.raises(NonFiniteLossError, match='at step 9; the checkpoint before it is kept'):
    window.row(last=10)


def test_steps_that_were_left_out_are_counted_and_in_no_mean():
  out = lambda in_row: step(np.nan, skipped=np.float32(1), skipped_in_row=np.float32(in_row))
  kept = lambda loss: step(loss, skipped=np.float32(0), skipped_in_row=np.float32(0))
  window = LogWindow(batch_size=1, skip=2)
  for metrics in (kept(1.0), out(1), kept(4.0)):
    window.add(metrics)
  row = window.row(last=3)
  assert (row['loss'], row['skipped'], window.ends_skipped) == (2.5, 1, False)
  assert 'skipped_in_row' not in row
  window.restart()
  for metrics in (out(1), out(2)):
    window.add(metrics)
  row = window.row(last=5)
  assert row['skipped'] == 2 and 'loss' not in row and window.ends_skipped
  window.restart()
  window.add(out(3))
  with pytest.raises(NonFiniteLossError, match='at step 6 and at 2 before it'):
    window.row(last=6)
