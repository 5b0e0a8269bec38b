"""(b) The train step by backbone, patch and batch, and the backbones alone."""

import functools
import gzip
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from mome_jax.training.flops import count_flops
from tests.benchmarks import timing
from tests.benchmarks.accelerator import networks, pytorch
from tests.benchmarks.accelerator.runner import Case, Part, Settings

_MANY = 12  # kernels that are named, longest first


def cases(settings: Settings) -> list[Case]:
  """Whole steps; backbones alone, those that PyTorch has too; the kernels of one step by name."""
  backbones = ('unet',) if settings.tiny else tuple(networks.CONFIGS)
  shared = {'tiny': settings.tiny, 'repeats': settings.repeats}
  rows = []
  for side, batch in networks.sizes(settings.tiny):
    for name in backbones:
      of = f'{name} {side}^3 x {batch}'
      size = {'side': side, 'batch': batch}
      rows.append(Case(f'step, {of}', functools.partial(_step, name, **size, **shared)))
      if name in pytorch.NETWORKS:
        rows.append(Case(f'backbone, {of}', functools.partial(_backbone, name, **size, **shared)))
  side, batch = (16, 1) if settings.tiny else (96, 4)
  kernels = [
    Case(
      f'kernels, {name} {side}^3 x {batch}',
      functools.partial(_kernels, name, side=side, batch=batch, tiny=settings.tiny),
    )
    for name in backbones
  ]
  half = len(rows) // 2  # of the larger patch
  return [*rows[:half], *kernels, *rows[half:]]


def _row(flops: float, seconds: float, batch: int, gigabytes: float | None) -> dict:
  return {
    'patches': batch / seconds,
    'ms': 1e3 * seconds,
    'tflops': flops / seconds / 1e12,
    'mfu': networks.mfu(flops, seconds),
    'gigabytes': gigabytes,
  }


def _step(name: str, *, side: int, batch: int, tiny: bool, repeats: int) -> dict:
  config = networks.config_of(name, tiny=tiny, side=side, batch=batch, dtype='bfloat16')
  step = networks.TrainStep(config, jax.devices()[0])
  seconds = networks.seconds_of(step, repeats)
  row = _row(step.flops, seconds, batch, networks.peak_gigabytes(step.compiled))
  return {**row, 'compile_seconds': step.compile_seconds}


def _module(name: str, tiny: bool) -> Any:
  from mome_jax.models.backbones import swin_unetr, unet

  size = 'tiny' if tiny else 'base'
  if name == 'unet':
    return unet.UNet(**unet.SIZES[size], dtype=jax.numpy.bfloat16)
  return swin_unetr.SwinUNETR(**swin_unetr.SIZES[size], dtype=jax.numpy.bfloat16)


def _backbone(name: str, *, side: int, batch: int, tiny: bool, repeats: int) -> dict:
  """Gradient of the mean square of the finest features by every parameter."""
  module = _module(name, tiny)
  image = np.random.default_rng(0).random((batch, side, side, side, 1), np.float32)
  params = jax.jit(module.init)(jax.random.key(0, impl='rbg'), image[:1])['params']
  gradient = timing.jit(
    jax.grad(lambda params, image: networks.loss_of(module.apply({'params': params}, image)[0]))
  )
  traced = gradient.trace(params, image)
  compiled = traced.lower().compile()
  arguments = jax.device_put((params, image), jax.devices()[0])
  seconds = networks.seconds_of(lambda: jax.block_until_ready(compiled(*arguments)), repeats)
  flops = count_flops(traced.jaxpr, jax.default_backend())
  return _row(flops, seconds, batch, networks.peak_gigabytes(compiled))


def _kernels(name: str, *, side: int, batch: int, tiny: bool) -> dict:
  """The longest kernels of one step; a slow backward convolution shows here by its name."""
  config = networks.config_of(name, tiny=tiny, side=side, batch=batch, dtype='bfloat16')
  step = networks.TrainStep(config, jax.devices()[0])
  step()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, create_perfetto_trace=True):
      step()
    [trace] = pathlib.Path(folder).rglob('perfetto_trace.json.gz')
    events = json.loads(gzip.decompress(trace.read_bytes()))
  milliseconds = kernel_times(events if isinstance(events, list) else events['traceEvents'])
  longest = sorted(milliseconds.items(), key=lambda item: -item[1])[:_MANY]
  first, time = longest[0] if longest else ('', 0.0)
  return {'ms': time, 'note': first[:80], 'kernels': longest}


def kernel_times(events: list[dict]) -> dict[str, float]:
  """Milliseconds of each kernel by name: of the streams of a device, or of XLA's threads on a CPU.

  Args:
    events: of a trace in Chrome's format.
  """
  named = [event for event in events if event.get('ph') == 'M']
  processes = {e['pid']: e['args'].get('name', '') for e in named if e['name'] == 'process_name'}
  threads = {
    (e['pid'], e['tid']): e['args'].get('name', '') for e in named if e['name'] == 'thread_name'
  }
  total: dict[str, float] = {}
  for event in events:
    if event.get('ph') != 'X':
      continue
    process = processes.get(event['pid'], '')
    thread = threads.get((event['pid'], event['tid']), '')
    on_device = '/device:' in process and ('Stream' in thread or 'XLA Ops' in thread)
    if on_device or ('host:CPU' in process and 'XLA' in thread):
      total[event['name']] = total.get(event['name'], 0.0) + event['dur'] / 1e3
  return total


PART = Part(
  'Time of a train step in bfloat16 (32 classes, rematerialised, with optimizer; `backbone`: the '
  'gradient of the mean square of the finest features alone); memory is of the compiler;',
  {
    'patches': 'patches/s',
    'ms': 'ms',
    'tflops': 'TFLOP/s',
    'mfu': 'MFU',
    'gigabytes': 'memory (GB)',
    'note': 'note',
  },
  cases,
)
