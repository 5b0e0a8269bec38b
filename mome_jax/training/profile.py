"""Profiles of training steps: `--config.profile=N`."""

import os
from typing import Any

import jax
from etils import epath

from mome_jax.errors import one_line


class Trace:
  """A profile of some steps for TensorBoard or Perfetto; of none if `steps` is 0."""

  def __init__(self, folder: epath.Path, *, first: int, steps: int):
    self._folder, self._first, self._end = folder, first, first + steps
    self._running = False

  def before(self, step: int, state: Any) -> None:
    """Starts before the first step, ends before the one after the last.

    Args:
      step: that comes next.
      state: that it starts from. It is waited for where a profile starts or ends: devices still
        compute the steps before when the host is here.
    """
    if step == self._first < self._end:
      jax.block_until_ready(state)
      jax.profiler.start_trace(os.fspath(self._folder))
      self._running = True
    elif step == self._end:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes the profile, if it is running; says so where the run ended before it began.

    No run ends for a profile that cannot be written.
    """
    if self._running:
      self._running = False
      self._end = self._first  # it is done
      try:
        jax.profiler.stop_trace()
      except jax.errors.JaxRuntimeError as error:
        print(f'note: no profile: {self._folder} cannot be written ({one_line(error)[:200]})')
        return
      print(f'profile: {self._folder}')
    elif self._first < self._end:
      print(f'note: no profile: it begins with step {self._first + 1}, which this run had not')
