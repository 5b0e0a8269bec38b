"""(h) The backbones of (b) in PyTorch.

In a part of their own, whose process leaves the device to PyTorch: JAX would take three quarters of
a GPU's memory and give none of it back.
"""

import functools
import importlib.util
from collections.abc import Callable

from tests.benchmarks.accelerator import networks
from tests.benchmarks.accelerator.runner import Case, Part, Settings


def cases(settings: Settings) -> list[Case]:
  """Backbones by patch, batch and way to run them."""
  names = ('unet',) if settings.tiny else tuple(NETWORKS)
  ways = ('eager',) if settings.tiny else ('eager', 'channels_last_3d', 'compiled')
  shared = {'tiny': settings.tiny, 'repeats': settings.repeats}
  return [
    Case(
      f'{name} {side}^3 x {batch}, {how}',
      functools.partial(_backbone, name, how, side=side, batch=batch, **shared),
    )
    for side, batch in networks.sizes(settings.tiny)
    for name in names
    for how in ways
  ]


def _unet(tiny: bool) -> Callable:
  """The U-Net of the CLIP-Driven Universal Model as a torch module; it has one size."""
  del tiny
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


def _swin_unetr(tiny: bool) -> Callable:
  if not importlib.util.find_spec('monai'):
    raise ModuleNotFoundError('MONAI, which has the same Swin UNETR, is not installed')
  import torch
  from monai.networks.nets.swin_unetr import SwinUNETR

  network = SwinUNETR(in_channels=1, out_channels=1, feature_size=12 if tiny else 48)
  network.out = torch.nn.Identity()
  return network


NETWORKS = {'unet': _unet, 'swin_unetr': _swin_unetr}


def _backbone(name: str, how: str, *, side: int, batch: int, tiny: bool, repeats: int) -> dict:
  """Gradient of the mean square of the finest features, with automatic mixed precision."""
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if device == 'cpu' and not tiny:  # its time would stand in a table of another device
    raise RuntimeError('PyTorch sees no GPU: a TPU is none for it, or it was built without CUDA')
  torch.backends.cudnn.benchmark = True
  network = NETWORKS[name](tiny).to(device)
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


PART = Part(
  'Gradient of the mean square of the finest features in PyTorch, bfloat16 by automatic mixed '
  'precision: the rows `backbone` of (b); memory is the allocated peak;',
  {'patches': 'patches/s', 'ms': 'ms', 'gigabytes': 'memory (GB)', 'note': 'note'},
  cases,
)
