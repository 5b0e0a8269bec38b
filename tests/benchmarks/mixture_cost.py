"""What the mixture costs over its baseline: temporary memory and time of a training step.

PYTHONPATH=. python tests/benchmarks/mixture_cost.py [--size=base] [--side=96] [--dtype=float32]

With the settings of configs/paper_unet.py: stages rematerialised, eight classes at a time. The loss
gradient of MoME and of the same backbone with its finest decoder layer alone, compiled for this
machine; --steps=0 only compiles. Prints a Markdown table.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from input_pipeline.anatomy import TEMPLATE
from mome_jax.configs import paper_unet
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import state, steps


def measure(experts: str, args) -> tuple[float, float]:
  """Temporary bytes and median seconds of one gradient."""
  config = paper_unet.get_config()
  config.classes = config.classes[: args.classes]
  config.model.backbone.size = args.size
  config.model.experts = experts
  config.model.dtype = args.dtype
  model, text_encoder = build_model(config.model), build_text_encoder(config.text)
  key = jax.random.key(0, impl='rbg')
  create = lambda key: state.init_params(config, model, text_encoder, key)
  table = jnp.asarray(TEMPLATE.code_table(config.classes))
  loss_fn = steps.make_loss_fn(model, text_encoder, table, config.train)
  side, k = args.side, args.classes
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.random((1, side, side, side, 1), np.float32),
    'label': rng.integers(0, k, (1, side, side, side)).astype(np.uint8),
    'supervised': np.ones((1, k), bool),
    'absent': np.zeros((1, k), bool),
    'frame': np.zeros((1, 4), np.float32),
    'slice_range': np.tile(np.array([-1e9, 1e9], np.float32), (1, k, 1)),
  }
  inputs = {'ids': np.ones((k, 8), np.int32), 'mask': np.ones((k, 8), bool)}
  prompts = {'sampled': inputs, 'default': inputs}
  gradient = timing.jit(lambda *inputs: jax.grad(loss_fn, has_aux=True)(*inputs)[0])
  compiled = gradient.lower(jax.eval_shape(create, key), batch, prompts).compile()
  seconds = []
  if args.steps:
    params = jax.jit(create)(key)
    for _ in range(args.steps + 1):
      start = time.perf_counter()
      jax.block_until_ready(compiled(params, batch, prompts))
      seconds.append(time.perf_counter() - start)
  return compiled.memory_analysis().temp_size_in_bytes, float(np.median(seconds[1:] or np.nan))


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='base', help='of the U-Net')
  parser.add_argument('--side', type=int, default=96, help='voxels along an edge of the patch')
  parser.add_argument('--classes', type=int, default=32)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--steps', type=int, default=3, help='timed; 0 only compiles')
  args = parser.parse_args()
  rows = {name: measure(name, args) for name in ('finest', 'pyramid')}
  print('| experts | temporaries, GB | step, s |\n|:--|--:|--:|')
  for name, (size, seconds) in rows.items():
    print(f'| {name} | {size / 1e9:.2f} | {seconds:.2f} |')
  ratios = np.array(rows['pyramid']) / np.array(rows['finest'])
  print(f'| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |')


if __name__ == '__main__':
  main()
