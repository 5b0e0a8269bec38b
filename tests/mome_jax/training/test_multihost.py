"""Signals that ask a run to end."""

import os
import signal
import subprocess
import sys

import pytest

from input_pipeline import stopping
from mome_jax.training import multihost

TWICE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests run under
from mome_jax.training import multihost
with multihost.Preemption() as preemption:
  os.kill(os.getpid(), signal.SIGINT)
  os.kill(os.getpid(), signal.SIGINT)  # as a launcher passes it on: the same press
  print(preemption.requested(), preemption.ending(1), preemption.ending(1).code, flush=True)
  time.sleep(1.2)
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(60)
print('never')
"""


@pytest.mark.parametrize(
  ('number', 'code', 'text'),
  [(signal.SIGINT, 130, 'the same command goes on'), (signal.SIGTERM, 75, 'asked to end')],
)
def test_a_signal_asks_once(number, code, text, monkeypatch):
  if number == signal.SIGINT:  # whatever the tests run under
    monkeypatch.setattr(signal, 'SIG_IGN', None)
  before = signal.getsignal(number)
  with multihost.Preemption() as preemption:
    assert not preemption.requested()
    os.kill(os.getpid(), number)
    assert preemption.requested()
    notice = preemption.ending(2)
  assert signal.getsignal(number) is before
  assert notice.code == code
  assert 'saved at step 2' in str(notice) and text in str(notice)


def test_sigterm_outside_the_steps_asks_for_a_new_start():
  """In the evaluation, say: launchers start again on 75, and on nothing else."""
  with pytest.raises(multihost.Preempted) as notice, multihost.outside_the_steps():
    raise stopping.Stopped(signal.SIGTERM)
  assert notice.value.code == 75
  with pytest.raises(KeyboardInterrupt), multihost.outside_the_steps():
    raise KeyboardInterrupt


def test_a_second_control_c_ends_at_once():
  done = subprocess.run([sys.executable, '-c', TWICE], capture_output=True, text=True, timeout=120)
  assert done.returncode == -signal.SIGINT
  assert done.stdout == 'True saved at step 1; the same command goes on from there 130\n'
  assert done.stderr.count('Control-C again ends at once') == 1
  assert 'Traceback' not in done.stderr
