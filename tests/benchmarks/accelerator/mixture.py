"""(c) What the mixture costs over its baseline, and banks of 8 to 64 sparse experts."""

import functools

import jax

from mome_jax.configs import paper_unet, sparse_8
from tests.benchmarks.accelerator import networks
from tests.benchmarks.accelerator.runner import Case, Part, Settings


def cases(settings: Settings) -> list[Case]:
  """The baseline, the mixture, and banks by number of experts and executor."""
  size = {
    'side': 16 if settings.tiny else 96,
    'batch': 1 if settings.tiny else 4,
    'tiny': settings.tiny,
    'repeats': settings.repeats,
  }
  rows = [
    Case(what, functools.partial(_mixture, experts, **size))
    for what, experts in (('finest layer alone', 'finest'), ('mixture', 'pyramid'))
  ]
  for count in (8,) if settings.tiny else (8, 16, 32, 64):
    for executor in ('capacity',) if settings.tiny else ('capacity', 'dense'):
      rows.append(
        Case(f'{count} experts, {executor}', functools.partial(_bank, count, executor, **size))
      )
  return rows


def _mixture(experts: str, *, side: int, batch: int, tiny: bool, repeats: int) -> dict:
  config = networks.config_of('unet', tiny=tiny, side=side, batch=batch, dtype='bfloat16')
  config.model.experts = experts
  return _measure(config, repeats)


def _bank(count: int, executor: str, *, side: int, batch: int, tiny: bool, repeats: int) -> dict:
  config = networks.config_of('unet', tiny=tiny, side=side, batch=batch, dtype='bfloat16')
  bank = sparse_8.get_config().model.bank
  bank.num_experts, bank.executor = count, executor
  if tiny:  # of which the coarser scales are no experts
    bank.scales = (1,)
  config.model.bank = bank
  config.model.remat = paper_unet.get_config().model.remat
  return _measure(config, repeats)


def _measure(config, repeats: int) -> dict:
  step = networks.TrainStep(config, jax.devices()[0])
  seconds = networks.seconds_of(step, repeats)
  return {
    'patches': config.train.batch_size / seconds,
    'ms': 1e3 * seconds,
    'tflop': step.flops / 1e12,
    'mfu': networks.mfu(step.flops, seconds),
    'gigabytes': networks.peak_gigabytes(step.compiled),
  }


PART = Part(
  'A train step of the U-Net in bfloat16: its finest decoder layer alone, the mixture of all, and '
  'banks of sparse experts at the two middle scales on one device;',
  {
    'patches': 'patches/s',
    'ms': 'ms',
    'tflop': 'TFLOP a step',
    'mfu': 'MFU',
    'gigabytes': 'memory (GB)',
  },
  cases,
)
