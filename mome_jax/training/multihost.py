"""Several processes as one run, and the signal that ends it."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mome_jax.errors import UserError

PREEMPTED = 75  # exit code of a run that saved because it was asked to end; launchers restart it
# A silent process is dead after this; less would end runs on hosts that are busy compiling.
_HEARTBEAT_SECONDS = 100


_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'  # as XLA begins its message


class DistributedError(UserError):
  """The environment does not say how the processes find each other; the message names it."""


class Preempted(Exception):
  """The run was asked to end and has saved."""


def initialize() -> None:
  """Joins the other processes of the run; before anything else of JAX.

  On Cloud TPU and under Slurm JAX finds them by itself. Elsewhere the environment says who they
  are: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID.

  Raises:
    DistributedError: if the environment does not say it, or a number in it is none.
  """
  processes, process = _number('JAX_NUM_PROCESSES'), _number('JAX_PROCESS_ID')
  try:
    jax.distributed.initialize(
      num_processes=processes,
      process_id=process,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except ValueError as error:
    raise DistributedError(
      f'--distributed: {error} Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, '
      'or leave --distributed and MOME_DISTRIBUTED out'
    ) from error


def _number(name: str) -> int | None:
  text = os.environ.get(name)
  if text is not None and not text.isdecimal():
    raise DistributedError(f'{name}={text!r}: expected a whole number')
  return None if text is None else int(text)


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
  """Whether the system has asked the run to end (SIGTERM).

  Under `jax.distributed` JAX itself listens for the signal and lets all processes agree on a step;
  a single process needs its own handler. Use as a context manager.
  """

  def __enter__(self):
    self._asked = False
    self._before = None
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, *_):
    self._asked = True

  def requested(self, step: int) -> bool:
    """True at the same `step` on all processes, once one of them got the signal."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked


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


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
  """What devices report while a run computes: where another process is gone, this one ends.

  Raises:
    UserError: if the devices are out of memory.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() > 1:
      abandon(error)
    if not str(error).startswith(_OUT_OF_MEMORY):
      raise
    raise UserError(
      f'the devices are out of memory ({str(error).splitlines()[0]}); lower train.batch_size, '
      'data.patch or model.class_chunk, or set model.remat'
    ) from error
