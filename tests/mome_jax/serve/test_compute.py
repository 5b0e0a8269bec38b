"""The one thread that computes for the page."""

import threading
import time

from mome_jax.serve import compute


def test_a_job_that_is_cancelled_as_its_turn_comes_does_not_end_the_line():
  line = compute.Line()
  waiting, seen = line._next, []

  def cancelled_between():
    jobs = list(waiting())
    if jobs and jobs == seen:
      jobs[0].cancel()
      return iter(())
    seen[:] = jobs
    return iter(jobs)

  line._next = cancelled_between
  first, done = line.add(lambda job: None), threading.Event()
  while not first.is_over:
    time.sleep(0.01)
  line._next = waiting
  line.add(lambda job: done.set())
  assert first.state == 'cancelled' and done.wait(60)
  assert line.close(60)


def test_what_still_runs_when_the_line_is_closed_is_told():
  line, started, going = compute.Line(), threading.Event(), threading.Event()

  def compile_on(job):  # nothing interrupts a compilation
    started.set()
    going.wait(60)

  line.add(compile_on)
  waiting = line.add(lambda job: None)
  assert started.wait(60)
  assert not line.close(0.01)
  going.set()
  assert line.close(60)
  assert waiting.state == 'cancelled'
