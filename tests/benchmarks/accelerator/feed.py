"""(e) Training patches a second of the host, by loader and workers."""

import dataclasses
import functools
import pathlib

from input_pipeline import bricks, control_groups, throughput
from input_pipeline.batches import dataset
from tests.benchmarks.accelerator.runner import Case, Part, Settings


def cases(settings: Settings) -> list[Case]:
  """Loaders that are installed, and workers up to all processors."""
  most = control_groups.usable_cpus()
  counts = (
    (1,) if settings.tiny else sorted({min(2**i, most) for i in range(most.bit_length() + 1)})
  )
  return [
    Case(f'{loader}, {count} workers', functools.partial(_measure, settings, loader, count))
    for loader in dataset.installed_loaders()
    for count in counts
  ]


def _measure(settings: Settings, loader: str, workers: int) -> dict:
  data_dir = pathlib.Path(settings.data_dir or _phantoms(settings))
  names = bricks.prepared_sources(data_dir)
  if not names:
    raise bricks.NotPreparedError(f'{data_dir}: holds no prepared source')
  side, seconds = (16, 0.2) if settings.tiny else (96, 15)
  command = ['--data-dir', data_dir, '--patch', side, '--seconds', seconds, '--batch-size', 4]
  args = throughput.make_parser().parse_args(list(map(str, command)))
  speed = throughput.measure_apart(args, names[:1], loader, workers)
  return {**dataclasses.asdict(speed), 'gigabytes': speed.peak_memory / 1e9}


def _phantoms(settings: Settings) -> pathlib.Path:
  """Prepared synthetic scans, made once."""
  folder = settings.output / 'phantoms'
  if not bricks.prepared_sources(folder):
    from input_pipeline.prepare import prepare

    spacing, brick = (12.0, 16) if settings.tiny else (1.5, 64)
    prepare('phantom', folder, spacing=(spacing,) * 3, brick=brick, limit=3)
  return folder


PART = Part(
  'Augmented patches of 96^3 that the host makes from prepared bricks (tiny: 16^3);',
  {
    'patches_per_second': 'patches/s',
    'read_amplification': 'voxels read for each one used',
    'gigabytes': 'memory (GB)',
  },
  cases,
)
