"""The steps between two rows of the log: their metrics, and where their time went."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from mome_jax.errors import UserError

T = TypeVar('T')


class NonFiniteLossError(UserError):
  """Training diverged; the message names the step."""


class LogWindow:
  """Metrics of the steps since the last row of the log.

  Args:
    batch_size: patches of a step.
    skip: steps in a row that may be left out, as `train.skip_nonfinite`.

  Attributes:
    ends_skipped: whether the last step of the newest row was left out.
  """

  def __init__(self, batch_size: int, skip: int = 0):
    self._batch_size, self._skip = batch_size, skip
    self.ends_skipped = False
    self._watch = ThreadPoolExecutor(1, 'watch')
    self._done: Future[float] = Future()  # when the devices had done the last step
    self._done.set_result(0.0)
    self.restart()

  def restart(self) -> None:
    """Starts with the next step, and its time now."""
    self._metrics: list[dict[str, Any]] = []
    self._waited, self._since = 0.0, time.perf_counter()

  def next(self, feed: Iterator[T]) -> T:
    """What the feed has next; the wait for it is part of the row, while devices have no work."""
    asked = time.perf_counter()
    item = next(feed)
    if self._done.done():
      self._waited += time.perf_counter() - max(asked, self._done.result())
    return item

  def add(self, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step, which may still be computed.

    Waits for those of the step before: the host is one step ahead of the devices, no more, so that
    times and the progress bar stay true.
    """
    self._metrics.append(metrics)
    self._done = self._watch.submit(_when_done, metrics)
    if len(self._metrics) > 1:
      jax.block_until_ready(self._metrics[-2])

  def row(self, last: int) -> dict[str, Any]:
    """Means over the steps that were not left out, and their times.

    Args:
      last: number of the last step, from 1 on.

    Returns:
      The metrics, and `data_wait`, the part of the time in which the devices waited for data,
      `seconds_per_step` and `patches_per_second`. Where steps were left out, their number as
      `skipped`; where all were, there are no means.

    Raises:
      NonFiniteLossError: if a loss or gradient is NaN or infinite, more than `skip` times in a row.
    """
    metrics = jax.device_get(self._metrics)
    good = []
    self.ends_skipped = False
    for step, values in enumerate(metrics, last - len(metrics) + 1):
      in_row = int(values.pop('skipped_in_row', 0))
      self.ends_skipped = in_row > 0
      if values.pop('skipped', 0) and in_row <= self._skip:
        continue
      if not (np.isfinite(values['loss']) and np.isfinite(values['grad_norm'])):
        where = f'step {step}' + (f' and at {in_row - 1} before it' if in_row > 1 else '')
        raise NonFiniteLossError(
          f'the loss is {values["loss"]}, its gradient {values["grad_norm"]} at {where}; the '
          'checkpoint before it is kept. Lower config.train.learning_rate or inspect the data.'
        )
      good.append(values)
    row = {name: np.mean([values[name] for values in good], 0) for name in (good or [{}])[0]}
    if len(good) < len(metrics):
      row['skipped'] = len(metrics) - len(good)
    seconds = time.perf_counter() - self._since
    row |= {'data_wait': self._waited / seconds, 'seconds_per_step': seconds / len(metrics)}
    row['patches_per_second'] = self._batch_size * len(metrics) / seconds
    return row


def _when_done(metrics: dict[str, Any]) -> float:
  jax.block_until_ready(metrics)
  return time.perf_counter()
