"""The values of an experiment, from fingerprint, rules and what fits."""

import dataclasses
import importlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from mome_jax.models import build_model
from mome_jax.plan import rules
from mome_jax.plan.cohort import Cohort
from mome_jax.plan.fit import Attempt
from mome_jax.plan.rules import Choice, Layout
from mome_jax.plan.target import Target

_STARTS = {'small': 'demo', 'base': 'base'}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """An experiment in the making.

  Attributes:
    cohort: the fingerprint.
    target: what it is for.
    data_dir: of the prepared sources.
  """

  cohort: Cohort
  target: Target
  data_dir: str

  @property
  def start(self) -> str:
    """The config of `mome_jax.configs` that it changes."""
    return _STARTS[self.target.size]

  @property
  def stride(self) -> int:
    """Of the network's coarsest scale."""
    return build_model(self._start().model).backbone.stride

  def _start(self) -> ConfigDict:
    return importlib.import_module(f'mome_jax.configs.{self.start}').get_config()

  def choices(self, layout: Layout, attempt: Attempt | None = None) -> list[Choice]:
    """Every value that is set.

    Args:
      layout: spacing, patch and batch.
      attempt: of that layout; None: not known yet.
    """
    seconds = self.target.budget.seconds
    step = None if attempt is None else attempt.seconds
    timed = attempt is not None and attempt.trial.seconds is not None
    steps = rules.steps(layout.batch, seconds, step, timed=timed)
    return [
      Choice('data_dir', self.data_dir, ''),
      self._classes(),
      Choice(
        'data.sources',
        tuple(origin.name_at(layout.spacing) for origin in self.cohort.origins),
        '',
      ),
      Choice('data.spacing', layout.spacing, layout.why_spacing),
      rules.windows(self.cohort),
      Choice('data.patch', layout.patch, layout.why_patch),
      rules.foreground(self.cohort),
      rules.balance(self.cohort),
      *self._machine(),
      self._scales(layout),
      Choice('train.batch_size', layout.batch, layout.why_batch),
      steps,
      *rules.schedule(steps.value),
      Choice('evaluation.window', layout.patch, "as in training: norms take a window's statistics"),
      rules.tidy(self.cohort),
    ]

  def config(self, layout: Layout) -> ConfigDict:
    """The experiment with a layout, as the compiler needs it."""
    return apply(self._start(), self.choices(layout))

  def _classes(self) -> Choice:
    labelled = self.cohort.labelled
    absent = [name for name in labelled if name not in self.cohort.classes]
    least = min(self.cohort.classes, key=lambda name: labelled[name])
    why = f'all that occur in a training scan; {least} is labelled in fewest, {labelled[least]}'
    if absent:
      read, total = len(self.cohort.cases), self.cohort.total
      if read == total:
        why += f'; left out, as labelled and never there: {", ".join(absent)}'
      else:
        why += (
          f'; left out, as labelled and in none of the {read} of {total} scans that were read: '
          f'{", ".join(absent)} (--scans={total} reads all)'
        )
    if self.cohort.held_out:
      why += f'; left out, as only held-out scans label them: {", ".join(self.cohort.held_out)}'
    return Choice('classes', self.cohort.classes, why)

  def _machine(self) -> list[Choice]:
    target = self.target
    dtype, remat = 'bfloat16', True
    why = 'half the memory and twice the speed on accelerators; parameters stay float32'
    if target.on_cpu:
      dtype, remat, why = 'float32', False, 'CPUs have no fast bfloat16'
    again = 'each stage is computed again in the backward pass: less memory for a third more work'
    if not remat:
      again = 'time is scarcer here than memory'
    return [
      Choice('data.cache_mb', target.cache_mb, 'decoded bricks in memory, at most an eighth of it'),
      Choice('model.backbone.size', target.size, target.why_size),
      Choice('model.dtype', dtype, why),
      Choice('model.remat', remat, again),
    ]

  def _scales(self, layout: Layout) -> Choice:
    edge, poolings = max(layout.patch), 0
    while edge >= 2 * rules.LEAST_EDGE:
      edge, poolings = edge // 2, poolings + 1
    stages = self.stride.bit_length() - 1
    why = f'all {stages + 1} decoder layers are experts; '
    if poolings == stages:
      why += f'{stages} poolings, as nnU-Net would of such a patch'
    else:
      why += (
        f'nnU-Net would pool the longest axis {poolings} times, this network pools {stages} times'
      )
    return Choice('model.scales', (), why)


def apply(config: ConfigDict, choices: Sequence[Choice]) -> ConfigDict:
  """The config with the values set; it is changed and returned."""
  for choice in choices:
    *parents, name = choice.name.split('.')
    part = config
    for parent in parents:
      part = part[parent]
    part[name] = choice.value
  return config
