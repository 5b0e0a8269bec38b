"""The largest patch and batch that memory and time hold: predicted first, then compiled."""

import dataclasses
import math
from collections.abc import Callable

from mome_jax.errors import UserError
from mome_jax.plan import rules, trial
from mome_jax.plan.cohort import Cohort
from mome_jax.plan.rules import Layout, Room

MOST = 4  # compilations of a plan, where the first that fits is not there by then
_LOOSE = 1.2  # of what time holds: edges come in strides, and steps can be fewer
_NEAR = 0.7  # of the voxels that time holds
ENOUGH = 0.8  # of the memory used, from which on nothing larger is looked for
_SECONDS = {'small': 4e-6, 'base': 2e-5}  # of a voxel of a step: a first guess
_STATE = 24  # bytes of a parameter: itself, its average, two moments, gradient and update


class FitError(UserError):
  """No patch fits; the message says what the smallest needs."""


@dataclasses.dataclass(frozen=True)
class Budget:
  """What a step and a run may take.

  Attributes:
    memory: bytes of a device for the step, without what else is kept there.
    seconds: of the whole training; None: no bound.
  """

  memory: float
  seconds: float | None


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A layout that was compiled, what was predicted of it, and what the compiler said.

  `seconds` of a step are as timed, or follow from the time of others and its size; None where
  nothing bounds the time.
  """

  layout: Layout
  predicted: float
  trial: trial.Trial
  fits: bool
  seconds: float | None = None


@dataclasses.dataclass
class _Model:
  """What a step of so many voxels needs: fixed + bytes * voxels; seconds * voxels."""

  fixed: float
  bytes: float
  seconds: float
  known: dict[int, int] = dataclasses.field(default_factory=dict)  # voxels -> largest peak
  most: float = math.inf  # voxels, after a step that was refused for less than the memory

  def peak(self, voxels: float) -> float:
    return self.fixed + self.bytes * voxels

  def room(self, memory: float) -> float:
    return min(max(memory - self.fixed, 0) / self.bytes, self.most)

  def learn(self, voxels: int, seen: trial.Trial) -> None:
    """Goes through the answers of the compiler."""
    if seen.peak is None:
      return
    self.known[voxels] = max(seen.peak, self.known.get(voxels, 0))
    if seen.seconds is not None:
      self.seconds = seen.seconds / voxels
    (x, y), *_ = others = sorted(self.known.items())
    if len(others) > 1:
      (x, y), (x2, y2) = others[-2:]
      slope = (y2 - y) / (x2 - x)
      if 0 < slope * x <= y:
        self.bytes, self.fixed = slope, y - slope * x
        return
    self.fixed = min(_STATE * seen.parameters, seen.peak / 2)
    self.bytes = (seen.peak - self.fixed) / voxels


def _guess(size: str, platform: str, classes: int) -> _Model:
  """Before the first compilation: what steps of our configs took, by the compilers at hand.

  The small network on the CPU holds the maps of all classes at once; base holds eight at a time.
  """
  seconds = _SECONDS.get(size, _SECONDS['base'])
  if size == 'small':
    return _Model(_STATE * 1.96e6, 2_320 + 260 * classes, seconds)
  return _Model(_STATE * 2e7, 7_500 if platform == 'tpu' else 16_000, seconds)


def fit(
  cohort: Cohort,
  machine: trial.Machine,
  budget: Budget,
  arrange: Callable[[Room], Layout],
  compile_layout: Callable[[Layout], trial.Trial],
  *,
  size: str,
  tell: Callable[[str], None] = lambda line: None,
) -> list[Attempt]:
  """Looks for the largest layout that fits.

  Args:
    cohort: the fingerprint.
    machine: to plan for.
    budget: of memory and time.
    arrange: the layout for a room.
    compile_layout: what the compiler says of the experiment with a layout.
    size: of the backbone, for the first guess.
    tell: takes a line for each compilation.

  Returns:
    What was tried, the chosen one last.

  Raises:
    FitError: if even the smallest patch does not fit.
    TrialError, TopologyError: as `compile_layout`.
  """
  model = _guess(size, machine.platform, len(cohort.classes))
  tried: list[Attempt] = []
  while True:
    room = _room(model, machine, budget)
    next_layout = arrange(room)
    voxels = next_layout.voxels * next_layout.batch // machine.devices
    fitting = [attempt for attempt in tried if attempt.fits]
    before = [attempt for attempt in tried if attempt.layout == next_layout]
    if room.by_time:
      before += [attempt for attempt in fitting if _is_near(attempt.layout, next_layout)]
    if before or (fitting and len(tried) >= MOST):
      best = before[0] if before and before[0].fits else max(fitting, key=_size, default=None)
      if best is None:
        raise FitError(_too_little(tried[-1], budget))
      return [*(attempt for attempt in tried if attempt is not best), best]
    tell(
      f'compiling {_shape(next_layout.patch)} voxels, {next_layout.batch} a step: '
      f'{gib(model.peak(voxels))} predicted ...'
    )
    seen = compile_layout(next_layout)
    peak = seen.peak or 0
    fits = not seen.refused and peak <= budget.memory
    tell(f'  {_need(seen, budget)}{_timed(seen)}')
    predicted = model.peak(voxels)
    model.learn(voxels, seen)
    if seen.refused and peak <= budget.memory:
      model.most = voxels / 2
    seconds = None if budget.seconds is None else model.seconds * voxels
    tried.append(Attempt(next_layout, predicted, seen, fits, seconds))
    if fits and peak >= ENOUGH * budget.memory:
      return tried


def _room(model: _Model, machine: trial.Machine, budget: Budget) -> Room:
  by_memory = model.room(budget.memory)
  if budget.seconds is None:
    return Room(by_memory, machine.devices, by_time=False)
  by_time = _LOOSE * rules.room_by_time(budget.seconds / model.seconds)
  return Room(min(by_memory, by_time), machine.devices, by_time=by_time < by_memory)


def _is_near(layout: Layout, other: Layout) -> bool:
  """Whether nothing is gained by another compilation: steps follow from the time of one anyway."""
  ratio = layout.voxels * layout.batch / (other.voxels * other.batch)
  return _NEAR <= ratio <= 1 / _NEAR


def _size(attempt: Attempt) -> int:
  return attempt.layout.voxels * attempt.layout.batch


def _too_little(attempt: Attempt, budget: Budget) -> str:
  layout = attempt.layout
  size = f'{_shape(layout.patch)} voxels, {layout.batch} a step,'
  peak = attempt.trial.peak or 0
  if peak <= budget.memory:
    return (
      f'even a patch of {size} ran out of memory; end other programs on the device, or plan for '
      'a smaller network: --size=small'
    )
  return (
    f'even a patch of {size} needs {gib(peak)}, and {gib(budget.memory)} are left for it; pass '
    'more --memory, or a smaller network: --size=small'
  )


def _need(seen: trial.Trial, budget: Budget) -> str:
  if seen.peak is None:
    return 'out of memory'
  need = f'{gib(seen.peak)} of {gib(budget.memory)}'
  if seen.peak > budget.memory:
    return f'{need}: too much'
  return f'{need}, but out of memory' if seen.refused else need


def _timed(seen: trial.Trial) -> str:
  if seen.seconds is None or seen.measured is None:
    return f' (compiled in {seen.compile_seconds:.0f} s)'
  return (
    f'; {gib(seen.measured)} measured, {seen.seconds:.3g} s a step '
    f'(compiled in {seen.compile_seconds:.0f} s)'
  )


def _shape(patch) -> str:
  return 'x'.join(str(n) for n in patch)


def gib(number: float) -> str:
  """Bytes for people."""
  return f'{number / 2**30:.2f} GiB' if math.isfinite(number) else 'any'
