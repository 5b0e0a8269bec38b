"""The one thread that computes for the page."""

import threading

from mome_jax.serve import compute


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
