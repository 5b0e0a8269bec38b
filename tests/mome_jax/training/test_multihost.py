"""Signals that ask a run to end."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from input_pipeline import stopping
from mome_jax.errors import UserError
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


@pytest.mark.parametrize(('takes', 'told'), [(0.0, False), (1.0, True)])
def test_a_process_waits_for_those_whose_hosts_are_replaced(takes, told, monkeypatch, capsys):
  """JAX ended it after five minutes, by SIGABRT and without a word of whom it waits for."""
  asked = {}

  def initialize(**keywords):
    asked.update(keywords)
    time.sleep(takes)

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(multihost, '_SILENT_SECONDS', 0.1)
  monkeypatch.setattr(multihost, '_check_devices', lambda *_: None)
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'first:1234')
  multihost.initialize()
  assert asked['initialization_timeout'] >= 1800
  said = capsys.readouterr().err
  assert (said.count('waits for the other processes of the run') == 1) == told
  assert ('process 0 out of reach at first:1234?' in said) == told


@pytest.mark.parametrize('address', ['first', 'first:', 'http://first:1234', 'first:port', ':1234'])
def test_an_address_that_is_none_is_told(address, monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **_: pytest.fail('it is none'))
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', address)
  with pytest.raises(multihost.DistributedError, match='expected the host of process 0 and a port'):
    multihost.initialize()


def test_a_port_that_is_taken_is_told(monkeypatch):
  """As by an earlier run that has not ended: JAX ends by SIGSEGV."""
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **_: pytest.fail('it is taken'))
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with socket.create_server(('localhost', 0)) as other:
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', f'localhost:{other.getsockname()[1]}')
    with pytest.raises(multihost.DistributedError, match='process 0 cannot listen at that port'):
      multihost.initialize()
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'localhost:99999')
  with pytest.raises(multihost.DistributedError, match='process 0 cannot listen at that port'):
    multihost.initialize()


@pytest.mark.parametrize(
  'text',
  [
    'UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):',
    'UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:534] Connection closed by peer',
    'INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network',
    'DEADLINE_EXCEEDED: Barrier timed out',
  ],
)
def test_a_lost_process_ends_this_one(text, monkeypatch):
  told = []
  monkeypatch.setattr(multihost, 'abandon', told.append)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  error = jax.errors.JaxRuntimeError(text)
  with pytest.raises(jax.errors.JaxRuntimeError), multihost.device_errors():
    raise error
  assert told == [error]


@pytest.mark.parametrize('kind', [jax.errors.JaxRuntimeError, ValueError])
def test_errors_that_a_call_raises_at_once_are_of_another_class(kind, monkeypatch):
  """Of a TPU's buffers, a GPU's command buffers, and Gloo: a traceback was all that was told."""
  told = []
  monkeypatch.setattr(multihost, 'abandon', told.append)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(UserError, match='the devices are out of memory'), multihost.device_errors():
    raise kind('RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 8.00M.')
  with pytest.raises(kind), multihost.device_errors():
    raise kind('UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer')
  assert len(told) == 1


@pytest.mark.parametrize(
  'error',
  [
    ValueError('UNAVAILABLE: Error writing "gs://b/d/0.0": CURL error: Connection reset by peer'),
    ValueError('UNAVAILABLE: Error reading "gs://nccl/d/0.0": CURL error: Connection reset'),
    ValueError('RESOURCE_EXHAUSTED: Error writing local file "d/0": No space left on device'),
    ValueError('heartbeat'),  # of anybody
    UserError('RESOURCE_EXHAUSTED: heartbeat'),
  ],
)
def test_other_errors_pass(error, monkeypatch):
  monkeypatch.setattr(multihost, 'abandon', lambda _: pytest.fail('told as a lost process'))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(type(error)) as passed, multihost.device_errors():
    raise error
  assert passed.value is error


@pytest.mark.parametrize(
  'text',
  [
    'INTERNAL: Failed to execute XLA Runtime executable: cuDNN launch failure',
    'INVALID_ARGUMENT: Executable expected parameter 0 of size 4 but got buffer of size 8',
    'UNIMPLEMENTED: unsupported operand type BF16 in op dot',
    'INTERNAL: during compilation: %opt-barrier.3 = (f32[8]) opt-barrier(%tuple.2)',
  ],
)
def test_an_error_of_this_process_is_no_lost_one(text, monkeypatch):
  monkeypatch.setattr(multihost, 'abandon', lambda _: pytest.fail('told as a lost process'))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(jax.errors.JaxRuntimeError, match=text[:8]), multihost.device_errors():
    raise jax.errors.JaxRuntimeError(text)
