"""Several processes as one run, and the signal that ends it."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline import stopping
from input_pipeline.errors import one_line
from mome_jax.errors import UserError
from mome_jax.runtime import jax_errors
from mome_jax.training import local_devices

PREEMPTED = stopping.PREEMPTED
# A silent process is dead after this; less would end runs on hosts that are busy compiling.
_HEARTBEAT_SECONDS = 100
# Until all processes are there. Where a host was taken away, its successor starts minutes after the
# others, whom JAX would end by SIGABRT: a failure, of which launchers bear a few.
_GATHERING_SECONDS = 1800
_SILENT_SECONDS = 60.0  # of that, before a process says whom it waits for
_ADDRESS = re.compile(r'[^\s/]+:[1-9][0-9]{0,4}')
_SAME_PRESS_SECONDS = 1.0  # signals nearer than this are one press of Control-C


class DistributedError(UserError):
  """The environment does not say how the processes find each other; the message names it."""


class Preempted(Exception):
  """The run was asked to end and has saved.

  Attributes:
    code: exit code: 130 after Control-C, which nobody restarts, or else PREEMPTED.
    agreed: whether all processes end now; else this one by itself.
  """

  def __init__(self, message: str, code: int = PREEMPTED, *, agreed: bool = True):
    super().__init__(message)
    self.code, self.agreed = code, agreed


def initialize() -> None:
  """Joins the other processes of the run; before anything else of JAX.

  On Cloud TPU and under Slurm JAX finds them by itself. Elsewhere the environment says who they
  are: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. A
  process that waits long for the others says so; the first prints which devices each has.

  Raises:
    DistributedError: if the environment does not say it, an address or number in it is none, or
      process 0 cannot listen at its port.
    DeviceError: if a process has not the devices that MOME_DEVICES or Slurm gives it, or the
      processes have different numbers of them.
  """
  processes, process = _number('JAX_NUM_PROCESSES'), _number('JAX_PROCESS_ID')
  _check_address(os.environ.get('JAX_COORDINATOR_ADDRESS', ''), listens=process == 0)
  local = None if 'JAX_LOCAL_DEVICE_IDS' in os.environ else local_devices.of_slurm()
  number = local_devices.expected(local)
  try:
    with _told_if_it_waits():
      jax.distributed.initialize(
        num_processes=processes,
        process_id=process,
        local_device_ids=local,
        initialization_timeout=_GATHERING_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      )
  except ValueError as error:
    raise DistributedError(
      f'--distributed: {error} Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, '
      'or leave --distributed and MOME_DISTRIBUTED out'
    ) from error
  _check_devices(local, number)


def _check_address(address: str, *, listens: bool) -> None:
  """DistributedError where an address is none, or its port is taken: JAX would end by SIGSEGV."""
  if not address:
    return
  if not _ADDRESS.fullmatch(address):
    raise DistributedError(
      f'JAX_COORDINATOR_ADDRESS={address!r}: expected the host of process 0 and a port, HOST:PORT'
    )
  try:
    if listens and 'JAX_COORDINATOR_BIND_ADDRESS' not in os.environ:
      socket.create_server(('', int(address.rpartition(':')[2]))).close()
  except (OSError, OverflowError) as error:
    raise DistributedError(
      f'JAX_COORDINATOR_ADDRESS={address!r}: process 0 cannot listen at that port ({error}); end '
      'an earlier run that has it, or choose another'
    ) from error


@contextlib.contextmanager
def _told_if_it_waits() -> Iterator[None]:
  """Says after a while that the others are not there; JAX says nothing, and ends the process."""
  address = os.environ.get('JAX_COORDINATOR_ADDRESS')
  text = (
    f'note: {socket.gethostname()} waits for the other processes of the run, up to '
    f'{_GATHERING_SECONDS // 60} minutes; is one of them not started, or process 0 out of reach'
    + (f' at {address}?' if address else '?')
  )
  timer = threading.Timer(_SILENT_SECONDS, print, (text,), {'file': sys.stderr, 'flush': True})
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _check_devices(local: list[int] | None, number: int | None) -> None:
  """Prints the devices of all processes; see `initialize`."""
  try:
    row = local_devices.seen(local, number)
  except local_devices.DeviceError as error:
    if jax.process_count() == 1:
      raise
    # The others wait for this process, and a goodbye would wait for them.
    print(f'error: {error}', file=sys.stderr, flush=True)
    os._exit(1)
  lines = local_devices.describe(gather_rows([row]))
  if is_lead():
    print('\n'.join(lines), flush=True)


def _number(name: str) -> int | None:
  text = os.environ.get(name)
  if text is not None and not text.isdecimal():
    raise DistributedError(f'{name}={text!r}: expected a whole number')
  return None if text is None else int(text)


def listen_again() -> None:
  """Lets SIGTERM end this process where no steps run: JAX took the handler, and is not asked."""
  if jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
    stopping.listen(signal.SIGTERM)


def is_lead() -> bool:
  """True for the one process that prints and writes."""
  return jax.process_index() == 0


def gather_rows(rows: list[dict]) -> list[dict]:
  """JSON objects of all processes, in the order of the processes; on every one of them."""
  if jax.process_count() == 1:
    return rows
  local = np.frombuffer(json.dumps(rows).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([local.size]))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: local.size] = local
  everyone = multihost_utils.process_allgather(padded)
  parts = zip(everyone, sizes.reshape(-1), strict=True)
  return [row for part, size in parts for row in json.loads(part[:size].tobytes())]


class Preemption:
  """Whether the run was asked to end, by SIGTERM of the system or by Control-C.

  Under `jax.distributed` JAX itself listens for SIGTERM and lets all processes agree on when to
  end; a single process needs its own handler. A second Control-C ends the process at once. Use as a
  context manager; outside its block only what processes agree on is heard.
  """

  _calls = itertools.count(1)  # of all there are: a count that began anew would miss the agreed one

  def __init__(self):
    self._asked: signal.Signals | None = None
    self._agreed, self._since = False, 0.0
    self._before = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      numbers = [] if jax.process_count() > 1 else [signal.SIGTERM]
      if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # shells set it for what runs behind
        numbers.append(signal.SIGINT)
      self._before = {number: signal.signal(number, self._note) for number in numbers}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    listen_again()

  def _note(self, number: int, _):
    if self._asked == number == signal.SIGINT:
      # A launcher in the same terminal passes on what this process got by itself.
      if time.monotonic() - self._since > _SAME_PRESS_SECONDS:
        _end_by(signal.SIGINT)
      return
    self._asked, self._since = signal.Signals(number), time.monotonic()
    if number == signal.SIGINT:
      text = b'\nstopping after this step, then saving; Control-C again ends at once\n'
      os.write(2, text)  # print would not bear being interrupted by itself
      if jax.process_count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)

  def requested(self) -> bool:
    """True from the same call on on all processes, once one of them got the signal.

    JAX agrees on the call after the highest number that any process has come to, and compares with
    `==`: steps of a resumed run, which begin later, would miss it.
    """
    if jax.distributed.is_initialized() and not self._agreed:
      self._agreed = multihost_utils.reached_preemption_sync_point(next(self._calls))
    return self._agreed or (jax.process_count() == 1 and self._asked is not None)

  def ending(self, step: int) -> Preempted:
    """What to raise after the checkpoint of `step` is written."""
    if self._asked == signal.SIGINT and jax.process_count() == 1:
      code = 128 + signal.SIGINT
      return Preempted(f'saved at step {step}; the same command goes on from there', code)
    return Preempted(f'asked to end, saved at step {step}; the same command resumes')


@contextlib.contextmanager
def outside_the_steps() -> Iterator[None]:
  """What SIGTERM means before the first step and after the last: the same command goes on, too.

  Of several processes each ends by itself: a goodbye would wait for the others.

  Raises:
    Preempted: if the system asked the run to end.
  """
  try:
    yield
  except KeyboardInterrupt as stopped:
    if stopping.number_of(stopped) != signal.SIGTERM:
      raise
    raise Preempted('asked to end; the same command resumes', agreed=False) from None


@contextlib.contextmanager
def nothing_to_lose() -> Iterator[None]:
  """Lets Control-C end the process at once: what compiles would not hear of it for minutes."""
  ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  if ignored or threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def _end_by(number: signal.Signals) -> None:
  """Ends this process as the signal does by default, which tells shells why."""
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), number)


def abandon(error: Exception) -> None:
  """Ends this process because another one is gone: no goodbye that would wait for it."""
  reason = str(error).split('\n')[0]
  print(
    f'error: process {jax.process_index()} of {jax.process_count()} lost another one ({reason}); '
    'run the same command again on all hosts to resume',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def leave(code: int) -> None:
  """Ends this process where several run: no goodbye that would wait for the others."""
  if jax.process_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def lone_errors() -> Iterator[None]:
  """Tells what one process alone has met, such as a full disk or a fault of ours, and ends it.

  JAX would wait minutes for the others, who wait for this one; then it ends by a signal.
  """
  try:
    yield
  except UserError as error:
    if jax.process_count() > 1:
      print(f'error: {one_line(error)}', file=sys.stderr)
    leave(error.exit_code)
    raise
  except Preempted:
    raise
  except Exception:
    if jax.process_count() > 1:
      traceback.print_exc()
    leave(1)
    raise


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
  """What devices report while a run computes: where another process is gone, this one ends.

  Any other error of JAX is a fault of this process, and passes.

  Raises:
    UserError: if the devices are out of memory.
  """
  try:
    yield
  except jax_errors.KINDS as error:
    if jax_errors.is_lost_process(error):
      abandon(error)
    if not jax_errors.is_out_of_memory(error):
      raise
    raise UserError(
      f'the devices are out of memory ({str(error).splitlines()[0]}); lower train.batch_size, '
      'data.patch or model.class_chunk, or set model.remat'
    ) from error
