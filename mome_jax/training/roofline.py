"""What a chip can do at best with a compiled program: its memory, its peak, its bandwidth."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Chip(NamedTuple):
  """A chip as its maker states it: cloud.google.com/tpu/docs/v5e, /v5p, /v6e.

  Attributes:
    hbm_gib: memory, GiB.
    flops: floating-point operations a second, bfloat16.
    bandwidth: bytes a second between the chip and its memory.
  """

  hbm_gib: int
  flops: float
  bandwidth: float


CHIPS = {
  'v5e': Chip(16, 197e12, 819e9),
  'v5p': Chip(95, 459e12, 2765e9),
  'v6e': Chip(32, 918e12, 1640e9),
}


def bound(chip: Chip, flops: float, traffic: float) -> dict[str, float]:
  """The least time of a program on one chip, and the most of its peak that it can reach.

  Args:
    chip: which.
    flops: floating-point operations of the program on one chip.
    traffic: bytes that it reads and writes in the chip's memory.

  Returns:
    `compute_seconds` and `memory_seconds`, each at full rate; `seconds`, the longer; `mfu_bound`,
    the share of the peak that the operations can reach. What a step computes again in its backward
    pass counts as work.
  """
  compute, memory = flops / chip.flops, traffic / chip.bandwidth
  longest = max(compute, memory)
  share = compute / longest if longest else 0.0
  return {
    'compute_seconds': compute,
    'memory_seconds': memory,
    'seconds': longest,
    'mfu_bound': share,
  }


def chip_hours(bound: Mapping[str, float], chips: int, steps: int) -> float:
  """What a training costs at least, three digits.

  Args:
    bound: of one step, see `bound`.
    chips: that take the step together.
    steps: of the training.
  """
  return float(f'{bound["seconds"] * steps * chips / 3600:.3g}')


def table(report: Mapping[str, Any]) -> str:
  """The report of `compile_ahead.compile_config` as a Markdown table of the steps that compiled."""
  names = [name for name in ('train', 'see', 'read') if 'error' not in report[name]]
  steps = [(name, report[name]) for name in names]
  rows = [(f'{report["topology"]}, {report["chips"]} chips', *(name for name, _ in steps))]
  add = lambda name, value: rows.append((name, *(value(step) for _, step in steps)))
  add('patches a chip', lambda step: f'{step["patches_per_chip"]:g}')
  add('GB moved a patch', lambda step: f'{step["traffic"]["total"] / 1e9:.1f}')
  for kind in report['train']['traffic']['kinds']:
    add(f'  {kind}', lambda step, k=kind: f'{step["traffic"]["kinds"][k] / 1e9:.1f}')
  add('TFLOP a patch', lambda step: f'{step["flops_per_patch"] / 1e12:.2f}')
  if report['train']['roofline']:
    milliseconds = lambda key: lambda step: f'{1e3 * step["roofline"][key]:.0f}'
    add('ms of a step, computing at peak', milliseconds('compute_seconds'))
    add('ms of a step, moving at full bandwidth', milliseconds('memory_seconds'))
    add('MFU at most', lambda step: f'{step["roofline"]["mfu_bound"]:.0%}')
    others = [''] * len(names[1:])
    rows.append(('chip hours of all steps, at least', f'{report["chip_hours"]:g}', *others))
  limit = report['hbm_limit']
  add(
    'GiB of a chip' + (f' (of {limit / 2**30:.0f})' if limit else ''),
    lambda step: f'{step["hbm"]["peak"] / 2**30:.1f}',
  )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '| ' + ' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + ' |'
    for row in rows
  ]
  rule = '|:' + '-' * widths[0] + '-|-' + ':|-'.join('-' * width for width in widths[1:]) + ':|'
  return '\n'.join([lines[0], rule, *lines[1:]])
