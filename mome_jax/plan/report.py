"""What a plan prints: fingerprint, values with their reasons, memory."""

from collections.abc import Sequence

import numpy as np

from mome_jax.plan.cohort import Cohort
from mome_jax.plan.fit import Attempt, gib
from mome_jax.plan.rules import CLIP, Choice
from mome_jax.plan.target import Target

# Measured: what a process on the CPU takes beside the arrays that the compiler knows, whatever the
# patch: 50 to 75 MB.
LIBRARIES = 2**26
_AT = (CLIP[0], 50.0, CLIP[1])  # percentiles


def title(cohort: Cohort) -> str:
  """'openkbp, 158 training scans'."""
  names = ', '.join(origin.name for origin in cohort.origins)
  return f'{names}, {cohort.total} training scans'


def fingerprint(cohort: Cohort) -> str:
  """The fingerprint as a page."""
  read = f' ({len(cohort.cases)} of them read)' if len(cohort.cases) < cohort.total else ''
  lines = [f'Fingerprint of {title(cohort)}{read}']
  sizes = np.array([case.shape for case in cohort.cases])
  apart = cohort.spacings.max(1) / cohort.spacings.min(1)
  lines += [
    f'  spacing mm     {_axes(cohort.spacings)}',
    f'  size voxels    {_axes(sizes)}',
    f'  extent mm      {_axes(cohort.extents)}',
    f'  coarsest over finest axis: median {np.median(apart):.2g}, at most {apart.max():.2g}',
    f'  HU at {_AT[0]:g}, {_AT[1]:g}, {_AT[2]:g} %: '
    f'{_three(cohort.hu(cohort.classes, _AT))} inside classes, '
    f'{_three(cohort.hu_outside(_AT))} in other tissue',
    '',
  ]
  clipped = f'({_AT[0]:g}..{_AT[2]:g} %)'
  rows: list[Sequence[str]] = [
    ('class', 'labelled in', 'there in', 'ml', '(10..90 %)', 'HU', clipped, 'one piece')
  ]
  rows += [_row(cohort, name) for name in cohort.classes]
  lines += _table(rows)
  absent = [name for name in cohort.labelled if name not in cohort.classes]
  if absent:
    lines.append(f'  labelled, and in no scan that was read: {", ".join(absent)}')
  if cohort.skipped:
    case, reason = cohort.skipped[0]
    lines.append(f'  not read: {len(cohort.skipped)}, first {case}: {reason}')
  return '\n'.join(lines)


def _row(cohort: Cohort, name: str) -> tuple[str, ...]:
  ml = cohort.volumes(name)
  read = sum(name in case.supervised for case in cohort.cases)
  low, middle, high = np.percentile(ml, (10, 50, 90))
  hu = cohort.hu([name], _AT)
  return (
    name, f'{cohort.labelled[name]} of {cohort.total}', f'{len(ml)} of {read}',
    f'{middle:.3g}', f'({low:.3g}..{high:.3g})', f'{hu[1]:.0f}', f'({hu[0]:.0f}..{hu[2]:.0f})',
    f'{100 * cohort.whole(name):.0f} %',
  )  # fmt: skip


def plan(choices: Sequence[Choice]) -> str:
  """Every value with its reason."""
  width = max(len(choice.name) for choice in choices)
  lines = []
  for choice in choices:
    value = repr(choice.value)
    line = f'{choice.name:{width}} = {value}'
    lines.append(f'{line}  # {choice.why}' if choice.why else line)
  return '\n'.join(lines)


def memory(target: Target, attempts: Sequence[Attempt]) -> str:
  """What the chosen step needs, and what was predicted and measured."""
  best = attempts[-1]
  step = best.trial
  assert step.peak is not None  # it fits
  lines = [
    '',
    f'Memory of a step: {gib(step.peak)} of {gib(target.budget.memory)}, by the compiler of '
    f'{step.compiler}',
  ]
  if target.on_cpu:
    lines.append(
      f'  ({gib(target.memory)} without 1 GiB for the program and {target.cache_mb} MiB for bricks)'
    )
  else:
    lines.append(
      f'  (nine tenths of {gib(target.memory)}: batches ahead and fragments take the rest)'
    )
  if step.measured is not None and target.here:
    known = step.peak + (LIBRARIES if target.on_cpu else 0)
    beside = f' with {LIBRARIES >> 20} MiB for libraries' if target.on_cpu else ''
    off = 100 * (known / step.measured - 1)
    lines.append(
      f'  measured as it ran: {gib(step.measured)}; predicted{beside}: {gib(known)}, {off:+.0f} %'
    )
  lines.append(
    f'  {step.parameters:,} parameters, {step.flops / 1e9:,.4g} GFLOP a step; '
    f'{len(attempts)} compiled'
  )
  return '\n'.join(lines)


def _axes(values: np.ndarray) -> str:
  low, middle, high = np.percentile(values, (0, 50, 100), axis=0)
  each = ', '.join(f'{a:.3g}..{b:.3g}' for a, b in zip(low, high, strict=True))
  return f'median {" x ".join(f"{x:.3g}" for x in middle)} ({each})'


def _three(values: Sequence[float]) -> str:
  return ', '.join(f'{value:.0f}' for value in values)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.ljust(width) if i in (0, 4, 6) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append(f'  {"  ".join(cells)}'.rstrip())
  return lines
