"""Time of the baseline networks against the same ones in PyTorch and MONAI, on the CPU.

PYTHONPATH=. python tests/benchmarks/torch_networks.py [--side=64] [--threads=2] [--repeats=3]

The U-Net of the CLIP-Driven Universal Model and Swin UNETR, published sizes, float32, one patch of
one channel, the same weights and cores in both. A step is the gradient of the mean square of the
finest features by every parameter. Prints a Markdown table; PyTorch has the memory format that is
faster for it.
"""

import argparse
import functools

import timing


def networks(name: str):
  """Our module and parameters, and their function of (tensors, image (1, 1, D, H, W)), tensors."""
  import torch
  from monai.networks.nets.swin_unetr import SwinUNETR

  from mome_jax import weights
  from mome_jax.models.backbones import swin_unetr, unet
  from tests.helpers.published_unet import pyramid
  from tests.mome_jax.weights import layouts

  if name == 'unet':
    state = layouts.unet_state(classes=1)
    params = weights.convert('universal_unet', state)['params']['backbone']
    tensors = {
      key: torch.from_numpy(value)
      for key, value in state.items()
      if key.startswith('backbone') and 'running' not in key and 'tracked' not in key
    }
    return unet.UNet(**unet.SIZES['base']), params, lambda s, x: pyramid(s, x)[0], tensors
  torch.manual_seed(0)
  theirs = SwinUNETR(in_channels=1, out_channels=1, feature_size=48)
  params = weights.convert('monai_swin_unetr', theirs.state_dict())['params']['backbone']
  theirs.out = torch.nn.Identity()
  tensors = {key: value.detach() for key, value in theirs.named_parameters()}
  call = functools.partial(torch.func.functional_call, theirs)
  return swin_unetr.SwinUNETR(**swin_unetr.SIZES['base']), params, call, tensors


def measure(name: str, side: int, repeats: int) -> None:
  """Prints two rows of the table."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import torch

  module, params, theirs, tensors = networks(name)
  image = np.random.default_rng(0).uniform(size=(1, side, side, side, 1)).astype(np.float32)
  params = jax.device_put(params)
  features = lambda params: module.apply({'params': params}, image)[0]
  forward = timing.jit(features)
  step = timing.jit(jax.grad(lambda params: jnp.square(features(params)).mean()))

  def torch_run(layout, learn):
    def prepared(x):
      return x.to(memory_format=layout) if x.ndim == 5 else x

    x = prepared(torch.from_numpy(image.reshape(1, 1, side, side, side)))
    state = {key: prepared(value).requires_grad_(learn) for key, value in tensors.items()}

    def run():
      with torch.set_grad_enabled(learn):
        y = theirs(state, x)
        if not learn:
          return y
        return torch.autograd.grad(y.square().mean(), list(state.values()))

    return run

  first, last = torch.contiguous_format, torch.channels_last_3d
  ours, expected = forward(params), torch_run(first, False)().numpy()[0]
  error = np.abs(np.moveaxis(ours[0], -1, 0) - expected).max() / np.abs(expected).max()
  if error > 1e-3:
    raise SystemExit(f'{name}: the networks differ by {error:.1e}')
  for what, function, learn in (('forward', forward, False), ('step', step, True)):
    seconds = timing.median_seconds(
      {
        'jax': lambda function=function: jax.block_until_ready(function(params)),
        'first': torch_run(first, learn),
        'last': torch_run(last, learn),
      },
      repeats,
    )
    theirs_best = min(seconds['first'], seconds['last'])
    row = (name, what, seconds['jax'], seconds['first'], seconds['last'])
    print(timing.row(*row, seconds['jax'] / theirs_best), flush=True)


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--networks', nargs='+', default=['unet', 'swin_unetr'])
  parser.add_argument('--side', type=int, default=64, help='voxels along an edge of the patch')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  timing.use_cores(args.threads)
  from tests.benchmarks.peers import machine

  machine.prepare(args.threads)
  print('| network | what | ours, s | PyTorch, s | PyTorch channels last, s | ours / best |')
  print('|:--|:--|--:|--:|--:|--:|')
  for name in args.networks:
    measure(name, args.side, args.repeats)


if __name__ == '__main__':
  main()
