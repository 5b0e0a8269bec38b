"""(b) The train step by backbone, patch and batch, against the same networks in PyTorch."""

import functools
import gzip
import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mome_jax.training.flops import count_flops
from tests.benchmarks import timing
from tests.benchmarks.accelerator import networks
from tests.benchmarks.accelerator.runner import Case, Part, Settings

_MANY = 12  # kernels that are named, longest first


def cases(settings: Settings) -> list[Case]:
  """Whole steps; backbones alone in both frameworks; the kernels of one step by name."""
  sides, batches = ((16,), (1,)) if settings.tiny else ((96, 128), (1, 2, 4, 8))
  backbones = ('unet',) if settings.tiny else tuple(networks.CONFIGS)
  shared = {'tiny': settings.tiny, 'repeats': settings.repeats}
  rows = []
  for side in sides:
    for batch in batches:
      for name in backbones:
        of = f'{name} {side}^3 x {batch}'
        size = {'side': side, 'batch': batch}
        rows.append(Case(f'step, {of}', functools.partial(_step, name, **size, **shared)))
        if name in _THEIRS:
          rows.append(Case(f'backbone, {of}', functools.partial(_backbone, name, **size, **shared)))
          rows += [
            Case(
              f'backbone in PyTorch, {how}, {of}',
              functools.partial(_torch_backbone, name, how, **size, **shared),
            )
            for how in _ways(settings.tiny)
          ]
  side, batch = (16, 1) if settings.tiny else (96, 4)
  kernels = [
    Case(
      f'kernels, {name} {side}^3 x {batch}',
      functools.partial(_kernels, name, side=side, batch=batch, tiny=settings.tiny),
    )
    for name in backbones
  ]
  return [*rows[: 4 * len(backbones)], *kernels, *rows[4 * len(backbones) :]]


def _ways(tiny: bool) -> tuple[str, ...]:
  return ('eager',) if tiny else ('eager', 'channels_last_3d', 'compiled')


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


def _their_unet(tiny: bool) -> Callable:
  """The U-Net of the CLIP-Driven Universal Model, base or narrow, as a torch module."""
  import torch

  from tests.helpers.published_unet import pyramid
  from tests.mome_jax.weights import layouts

  names = {
    key: value
    for key, value in layouts.unet_state(classes=1).items()
    if key.startswith('backbone') and 'running' not in key and 'tracked' not in key
  }

  class Net(torch.nn.Module):
    def __init__(self):
      super().__init__()
      for key, value in names.items():
        self.register_parameter(key.replace('.', '|'), torch.nn.Parameter(torch.from_numpy(value)))

    def forward(self, x):
      return pyramid({k.replace('|', '.'): p for k, p in self.named_parameters()}, x)[0]

  return Net()


def _their_swin_unetr(tiny: bool) -> Callable:
  if not importlib.util.find_spec('monai'):
    raise ModuleNotFoundError('MONAI, which has the same Swin UNETR, is not installed')
  import torch
  from monai.networks.nets.swin_unetr import SwinUNETR

  network = SwinUNETR(in_channels=1, out_channels=1, feature_size=12 if tiny else 48)
  network.out = torch.nn.Identity()
  return network


_THEIRS = {'unet': _their_unet, 'swin_unetr': _their_swin_unetr}


def _torch_backbone(
  name: str, how: str, *, side: int, batch: int, tiny: bool, repeats: int
) -> dict:
  """The same in PyTorch with automatic mixed precision."""
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cudnn.benchmark = True
  network = _THEIRS[name](tiny).to(device)
  image = torch.rand(batch, 1, side, side, side, device=device)
  if how != 'eager':
    network = network.to(memory_format=torch.channels_last_3d)
    image = image.to(memory_format=torch.channels_last_3d)
  if how == 'compiled':
    network = torch.compile(network)

  def step():
    with torch.autocast(device, torch.bfloat16):
      loss = network(image).float().square().mean()
    loss.backward()
    network.zero_grad(set_to_none=True)
    if device == 'cuda':
      torch.cuda.synchronize()

  if device == 'cuda':
    torch.cuda.reset_peak_memory_stats()
  seconds = networks.seconds_of(step, repeats)
  gigabytes = torch.cuda.max_memory_allocated() / 1e9 if device == 'cuda' else None
  return {'patches': batch / seconds, 'ms': 1e3 * seconds, 'gigabytes': gigabytes}


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
  'gradient of the mean square of the finest features alone, the same in PyTorch with automatic '
  'mixed precision); memory is of the compiler, of PyTorch the allocated peak;',
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
