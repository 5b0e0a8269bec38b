"""How long a run will take: as the last one like it here, then by its own first steps."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from input_pipeline import progress
from mome_jax.runtime import compilation, durations

_FIRST_SECONDS = 10.0  # of the steps that are timed, the first after compiling left out
_FIRST_STEPS = 3
_OTHERWISE = 1.5  # ratio of two times from which on they are not the same
_STEP, _VALIDATION = 'a step of training', 'a validation'


class Forecast:
  """Tells how long the steps of a run will take, and notes how long they took.

  Args:
    config: the whole config.
    first: steps that are done already.
    validations: how many are to come.
    say: takes a line, of the one process that prints; None: of the others.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    first: int,
    validations: int,
    say: Callable[[str], object] | None,
  ):
    self._say = say
    self._total, self._first = config.train.steps, first
    self._validations = validations
    self._at_most = ' at most' if config.validation.patience else ''
    self._keys = {name: f'{name}: {key_of(config)}' for name in (_STEP, _VALIDATION)}
    self._before = {name: durations.last(key) for name, key in self._keys.items()}
    self._since: float | None = None
    self._is_told = False
    self._seen: dict[str, list[float]] = {_STEP: [], _VALIDATION: []}

  def announce(self) -> None:
    """Before compiling: what is known from the last run."""
    step, steps = self._before[_STEP], self._total - self._first
    if self._say is None:
      return
    if step is None:
      self._say(f'{steps} steps: how long they take is told after the first ones')
    else:
      self._tell(steps, step, ', as last time')

  def step(self, done: int) -> None:
    """After every step: its time is told once it is known, and is not what was announced.

    Args:
      done: steps of the whole run.
    """
    if self._is_told or self._say is None:
      return
    now = time.perf_counter()
    if self._since is None:  # the first one waits for data and for what is loaded
      self._since, self._begun = now, done
      return
    count, spent = done - self._begun, now - self._since
    if count < _FIRST_STEPS or spent < _FIRST_SECONDS:
      return
    self._is_told = True
    step, before = spent / count, self._before[_STEP]
    if before is None or not 1 / _OTHERWISE < step / before < _OTHERWISE:
      self._tell(self._total - done, step, '' if before is None else f', not {before:.2g} s')

  def row(self, row: dict[str, Any]) -> None:
    """Notes the times of a row of the log."""
    if self._say is None:
      return
    for name, field in ((_STEP, 'seconds_per_step'), (_VALIDATION, 'validation/seconds')):
      if field in row:
        seen = self._seen[name]
        seen.append(float(row[field]))
        durations.note(self._keys[name], float(np.median(seen[1:] or seen)))  # the first compiles
    if 'validation/seconds' in row:
      self._since = None  # it is no step

  def _tell(self, steps: int, step: float, as_what: str) -> None:
    assert self._say is not None
    parts = [f'{step:.2g} s a step{as_what}']
    seconds, validation = steps * step, self._before[_VALIDATION]
    if self._validations and validation is not None:
      seconds += self._validations * validation
      parts.append(f'{self._validations} validations of {validation:.2g} s')
    elif self._validations:
      parts.append(f'{self._validations} validations not counted')
    left = f'{steps} steps{"" if steps == self._total else " are left"}'
    self._say(
      f'{left}:{self._at_most} about {progress.in_words(seconds)} ({", ".join(parts)}), '
      f'{progress.until(seconds)}; scoring comes after that'
    )


def key_of(config: ml_collections.ConfigDict, *, devices: bool = True) -> str:
  """What decides how long a step takes; with `devices` on what it runs, which wakes them."""
  train = {k: v for k, v in config.train.items() if k in ('accumulate', 'negatives', 'freeze')}
  parts = [config.model.to_dict(), config.text.to_dict(), config.mesh.to_dict(), train]
  parts += [len(config.data.windows), config.validation.patches]
  digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
  program = f'{compilation.network(config, training=True)}, {digest}'
  return f'{program}, {compilation.devices()}' if devices else program


def last_step(config: ml_collections.ConfigDict) -> float | None:
  """Seconds of a step of the last run like this one, on whatever device; None if there was none."""
  return durations.last(f'{_STEP}: {key_of(config, devices=False)}')


def of_folds(config: ml_collections.ConfigDict, left: int) -> str:
  """How long the folds take that are left, as far as the last run like them tells.

  Asks no device: each fold is a process, and takes them for itself.
  """
  steps, step = config.train.steps, last_step(config)
  what = f'{left} folds of {steps} steps'
  if step is None:
    return f'{what}: how long they take is told after the first one'
  seconds = left * steps * step
  return (
    f'{what}: about {progress.in_words(seconds)} of training ({step:.2g} s a step, as last time), '
    f'{progress.until(seconds)}; scoring comes after each'
  )


def after_fold(left: int, seconds: float) -> str:
  """How long the folds take that are left, after one that was trained from its start.

  Args:
    left: how many.
    seconds: that it took, with its scores.
  """
  whole = left * seconds
  return (
    f'{left} folds are left: about {progress.in_words(whole)}, if each takes as long as this one '
    f'({progress.in_words(seconds)}), {progress.until(whole)}'
  )
