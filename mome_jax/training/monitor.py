"""When a run is validated, what is written of it, and the choices that are made by it."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import ml_collections
import numpy as np
from etils import epath

from mome_jax.errors import UserError
from mome_jax.training import multihost
from mome_jax.training.validation_scans import HeldOutScans


class Measure(Protocol):
  """Measures averaged parameters; see `validation.Validation`."""

  def __call__(self, ema: Any, is_ending: Callable[[], bool]) -> dict[str, float] | None:
    """Losses and Dice; None where the run is asked to end before they are known."""

  def draw(self, path: epath.Path, ema: Any, title: str, is_ending: Callable[[], bool]) -> None:
    """Draws the prediction of one scan, unless the run is asked to end meanwhile."""


class ValidationError(UserError):
  """A choice is asked for that no scans are set aside for; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """What was measured so far, as far as choices depend on it; every checkpoint keeps it.

  Attributes:
    smooth: mean foreground Dice, smoothed over the validations; None before the first.
    best: the highest of them.
    best_step: after how many steps that was.
    waited: validations since then.
    unmeasured: the step that was to be measured when the run was asked to end: it is measured when
      the run goes on.
  """

  smooth: float | None = None
  best: float | None = None
  best_step: int = 0
  waited: int = 0
  unmeasured: int | None = None

  def after(self, step: int, dice: float, smoothing: float) -> 'Choice':
    """With one more validation.

    Args:
      step: steps done.
      dice: mean foreground Dice.
      smoothing: share of the earlier ones in `smooth`.
    """
    smooth = dice if self.smooth is None else smoothing * self.smooth + (1 - smoothing) * dice
    if self.best is None or smooth > self.best:
      return Choice(smooth, smooth, step, 0)
    return Choice(smooth, self.best, self.best_step, self.waited + 1)

  def is_exhausted(self, patience: int) -> bool:
    """Whether so many validations brought nothing better; never with a patience of 0."""
    return 0 < patience <= self.waited


class Monitor:
  """The validations of a run; every process has one, and all see the same numbers.

  Args:
    config: the whole config.
    scans: that are held out; None where there are none, so that nothing is measured.
    validation: of these scans, or None.
    choice: of the run's earlier steps.
    pictures: folder to draw into.

  Raises:
    ValidationError: if a choice is asked for and no scans are set aside.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    scans: HeldOutScans | None,
    validation: Measure | None,
    choice: Choice,
    pictures: epath.Path,
  ):
    self._config, self._scans, self._validation = config.validation, scans, validation
    self._steps, self._pictures = config.train.steps, pictures
    self.choice = choice
    self._begun, self._spent = time.perf_counter(), 0.0
    check_choices(config, scans)

  def is_due(self, step: int) -> bool:
    """Whether the parameters after so many steps are measured."""
    if self._validation is None:
      return False
    return step % self._config.every == 0 or step == self._steps

  def left(self, step: int) -> int:
    """How many validations come after so many steps, if the run does not end early."""
    return sum(self.is_due(later) for later in range(step + 1, self._steps + 1))

  def measure(
    self, step: int, ema: Any, is_ending: Callable[[], bool] = lambda: False
  ) -> dict[str, float]:
    """What the log says of a validation, all 'validation/...'; draws one scan.

    Args:
      step: steps done.
      ema: parameters averaged over them.
      is_ending: whether the run was asked to end by now, the same on all processes: then nothing
        is drawn, and what is not known yet is left out, see `is_unmeasured`; {} where that is all.
    """
    assert self._validation is not None
    start = time.perf_counter()
    values = self._validation(ema, is_ending)
    self.choice = dataclasses.replace(self.choice, unmeasured=step if values is None else None)
    if values is None:
      return {}
    if 'dice' in values:
      self.choice = self.choice.after(step, values['dice'], self._config.smoothing)
      values['dice_smooth'] = self.choice.smooth or 0.0
    if self._config.picture and not is_ending():
      path = self._pictures / f'validation_{step:06}.png'
      shown = f', Dice {100 * values["dice"]:.1f} % on all patches' if 'dice' in values else ''
      title = f'step {step}{shown}: prediction filled, reference dashed'
      self._validation.draw(path, ema, title, is_ending)
    self._spent += time.perf_counter() - start
    values |= {'seconds': time.perf_counter() - start, 'time_share': self.time_share}
    return {f'validation/{name}': np.float64(value) for name, value in values.items()}

  @property
  def time_share(self) -> float:
    """Part of the wall time since this process began to train that validation took."""
    return self._spent / (time.perf_counter() - self._begun)

  def is_unmeasured(self, step: int) -> bool:
    """Whether a checkpoint is still to be measured, as the run was asked to end."""
    return self._validation is not None and self.choice.unmeasured == step

  def is_best(self, step: int) -> bool:
    """Whether the checkpoint of this step is the best one so far."""
    return self._chooses and self.choice.best is not None and self.choice.best_step == step

  def score(self, step: int) -> float | None:
    """What the best checkpoint is chosen by; None of a step that is not to be chosen."""
    return self.choice.smooth if self.is_best(step) else None

  @property
  def is_exhausted(self) -> bool:
    """Whether the run ends early."""
    return self._chooses and self.choice.is_exhausted(self._config.patience)

  @property
  def _chooses(self) -> bool:
    return self._scans is not None and self._scans.chooses

  def announce(self) -> None:
    """Prints what is measured; the lead process, before the first step."""
    if not multihost.is_lead() or not self._config.every:
      return
    if self._scans is None:
      print('validation: no scan is held out for it; see config.validation', flush=True)
    else:
      print(f'validation every {self._config.every} steps on {self._scans.about}', flush=True)

  def tell(self) -> None:
    """Prints how much the validations took, and which was the best; the lead process."""
    if multihost.is_lead() and self._spent:
      best = f'; best at step {self.choice.best_step}' if self._chooses else ''
      print(f'validation took {100 * self.time_share:.1f} % of the time{best}', flush=True)


def check_choices(config: ml_collections.ConfigDict, scans: HeldOutScans | None) -> None:
  """Refuses to choose where nothing may be chosen by.

  Raises:
    ValidationError: if `evaluation.checkpoint` or `validation.patience` needs scans set aside, and
      there are none; or if some are, and nothing is ever measured on them.
  """
  asked = {
    'evaluation.checkpoint=best': config.evaluation.checkpoint == 'best',
    f'validation.patience={config.validation.patience}': config.validation.patience > 0,
  }
  if config.validation.cases and not config.validation.every:
    raise ValidationError(
      f'config.validation.cases={config.validation.cases} sets scans aside from training, and with '
      'config.validation.every=0 nothing is measured on them; set that to a number of steps'
    )
  if scans is None or not scans.chooses:
    for name, is_asked in asked.items():
      if is_asked:
        raise ValidationError(
          f'config.{name} chooses on scans set aside from training, and there are none: set '
          'config.validation.every and config.validation.cases (at most a fifth of the training '
          'scans of each dataset is taken), or leave it out'
        )
