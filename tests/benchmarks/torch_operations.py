"""Time of single layers against PyTorch's, forward and each gradient, on the CPU, in float32.

PYTHONPATH=. python tests/benchmarks/torch_operations.py [--only conv] [--threads=2] [--repeats=5]

Shapes are those of the U-Net and Swin UNETR at 64^3. `x` and `kernel` are the gradients by the
input and by the kernel alone, `step` is forward and all gradients. Prints a Markdown table of
milliseconds; the ratio is to the memory format that is faster for PyTorch.
"""

import argparse
import math

import timing

# name, voxels along a side, channels in and out
CASES = [
  ('conv 3x3x3', 64, 1, 32),
  ('conv 3x3x3', 64, 32, 64),
  ('conv 3x3x3', 64, 192, 64),
  ('conv 3x3x3', 32, 128, 128),
  ('conv 3x3x3', 16, 256, 256),
  ('conv 3x3x3', 8, 512, 512),
  ('conv 3x3x3', 64, 48, 48),
  ('conv 3x3x3, stride 2', 64, 32, 64),
  ('conv 2x2x2, stride 2', 64, 1, 48),
  ('conv 1x1x1', 64, 96, 48),
  ('conv 1x1x1', 64, 64, 8),
  ('transposed 2x2x2', 32, 128, 128),
  ('transposed 2x2x2', 8, 512, 512),
  ('instance norm', 64, 64, 64),
  ('instance norm', 16, 256, 256),
  ('group norm', 64, 64, 64),
  ('layer norm', 32, 48, 48),
  ('max pool', 64, 64, 64),
]


def ours(name: str, kernel_shape):
  """Our function of (x, kernel)."""
  import jax

  from mome_jax import ops
  from mome_jax.ops import conv3d

  norms = {
    'instance norm': ops.GroupNorm(per_channel=True),
    'group norm': ops.GroupNorm(),
    'layer norm': ops.LayerNorm(),
  }
  if name == 'max pool':
    return lambda x, kernel: ops.max_pool(x)
  if name in norms:
    return lambda x, k: norms[name].apply({'params': {'scale': k[0], 'bias': k[1]}}, x)
  if 'stride' not in name and 'conv' in name:
    return conv3d.conv3d
  if name == 'conv 3x3x3, stride 2':
    return conv3d.conv3d_halving
  module = ops.DownConv3D if name.startswith('conv') else ops.UpConv3D
  module = module(kernel_shape[-1])
  bias = jax.numpy.zeros(kernel_shape[-1])
  return lambda x, kernel: module.apply({'params': {'kernel': kernel, 'bias': bias}}, x)


def theirs(name: str):
  """PyTorch's function of (x, kernel)."""
  import torch.nn.functional as F

  match name.split():
    case ['max', 'pool']:
      return lambda x, k: F.max_pool3d(x, 2)
    case ['instance', 'norm']:
      return lambda x, k: F.instance_norm(x, weight=k[0], bias=k[1])
    case ['group', 'norm']:
      return lambda x, k: F.group_norm(x, math.gcd(16, x.shape[1]), k[0], k[1])
    case ['layer', 'norm']:
      return lambda x, k: F.layer_norm(x, x.shape[-1:], k[0], k[1])
    case ['transposed', _]:
      return lambda x, k: F.conv_transpose3d(x, k, stride=2)
    case ['conv', size, *_]:
      stride, padding = 2 if 'stride' in name else 1, 1 if size == '3x3x3,' else int(size[0]) // 2
      padding = 0 if size.startswith('2') else padding
      return lambda x, k: F.conv3d(x, k, stride=stride, padding=padding)


def measure(name: str, side: int, width: int, features: int, repeats: int) -> None:
  """Prints one row for the forward pass and each gradient."""
  import jax
  import numpy as np
  import torch

  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, side, side, side, width)).astype(np.float32)
  convolves = 'norm' not in name and 'pool' not in name
  size = next((int(part[0]) for part in name.split() if part[0].isdigit()), 0)
  shape = (size, size, size, width, features) if convolves else (2, features)
  kernel = rng.normal(size=shape).astype(np.float32)

  function = ours(name, shape)
  forward = timing.jit(function)
  jx, jk = jax.device_put((x, kernel))
  y = forward(jx, jk)
  dy = jax.device_put(rng.normal(size=y.shape).astype(np.float32))
  # Compiled as one program: a convolution's forward pass is not needed for its gradients and goes.
  pull = lambda x, k, dy: jax.vjp(function, x, k)[1](dy)
  by_x, by_k = (timing.jit(lambda *inputs, i=i: pull(*inputs)[i]) for i in (0, 1))
  both = timing.jit(lambda x, k, dy: (function(x, k), pull(x, k, dy)))
  runs = {('forward', 'jax'): lambda: jax.block_until_ready(forward(jx, jk))}
  if convolves:
    runs['x', 'jax'] = lambda: jax.block_until_ready(by_x(jx, jk, dy))
    runs['kernel', 'jax'] = lambda: jax.block_until_ready(by_k(jx, jk, dy))
  else:
    runs['step', 'jax'] = lambda: jax.block_until_ready(both(jx, jk, dy))
  for layout in (torch.contiguous_format, torch.channels_last_3d):

    def prepared(a, layout=layout):
      tensor = torch.from_numpy(np.array(a))
      if name == 'layer norm':
        return tensor
      if a.ndim == 5 and a.shape[0] > 1 or convolves and a is kernel:
        order = (3, 4, 0, 1, 2) if name.startswith('transposed') else (4, 3, 0, 1, 2)
        return tensor.permute(order).contiguous(memory_format=layout)
      return tensor.movedim(-1, 1).contiguous(memory_format=layout) if a.ndim == 5 else tensor

    tx, tk, tdy = (prepared(a) for a in (x, kernel, dy))
    tx.requires_grad_()
    tk.requires_grad_()
    operation = theirs(name)
    ty = operation(tx, tk)
    expected = ty.detach().numpy()
    expected = expected if name == 'layer norm' else np.moveaxis(expected, 1, -1)
    error = np.abs(np.asarray(y) - expected).max() / np.abs(expected).max()
    if error > 1e-4:
      raise SystemExit(f'{name}: the results differ by {error:.1e}')

    def infer(operation=operation, tx=tx, tk=tk):
      with torch.no_grad():
        operation(tx, tk)

    runs['forward', layout] = infer
    if convolves:
      for what, leaf in (('x', tx), ('kernel', tk)):
        runs[what, layout] = lambda ty=ty, leaf=leaf, tdy=tdy: torch.autograd.grad(
          ty, leaf, tdy, retain_graph=True
        )
    else:
      leaves = [tx] if name == 'max pool' else [tx, tk]
      runs['step', layout] = lambda operation=operation, tx=tx, tk=tk, tdy=tdy, leaves=leaves: (
        torch.autograd.grad(operation(tx, tk), leaves, tdy)
      )
  for what in ('forward', 'x', 'kernel') if convolves else ('forward', 'step'):
    ms = timing.median_seconds({k: f for k, f in runs.items() if k[0] == what}, repeats)
    first, *others = (1e3 * seconds for seconds in ms.values())
    row = (name, f'{side}^3 {width} to {features}', what, first, *others, first / min(others))
    print(timing.row(*row), flush=True)


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='operations whose name contains this')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  timing.use_cores(args.threads)
  from tests.benchmarks.peers import machine

  machine.prepare(args.threads)
  print('| operation | shape | what | ours | PyTorch | PyTorch channels last | ours / best |')
  print('|:--|:--|:--|--:|--:|--:|--:|')
  for case in CASES:
    if args.only in case[0]:
      measure(*case, args.repeats)


if __name__ == '__main__':
  main()
