"""Cost of a bank with its number of experts: dense against capacity, forward and backward.

PYTHONPATH=. python tests/benchmarks/experts.py [--tokens 16384] [--width 64] [--experts 8 16 32 64]
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from mome_jax.models import sparse_bank
from mome_jax.moe import capacity, dense, routing
from mome_jax.training.flops import count_flops

TOP_K, FACTOR = 2, 1.25


def make_step(executor: str, num_experts: int, tokens: int):
  """step(params, x, logits) -> gradients of all three."""
  room = routing.capacity(tokens, num_experts, TOP_K, FACTOR)

  def loss(params, x, logits):
    valid = jnp.ones(x.shape[0], bool)
    routes = routing.route(logits, valid, TOP_K)
    if executor == 'dense':
      y = dense.execute(sparse_bank.apply_experts, params, x, routes, valid)
    else:
      y, _ = capacity.execute(sparse_bank.apply_experts, params, x, routes, valid, capacity=room)
    return jnp.square(y).mean()

  return jax.jit(jax.grad(loss, (0, 1, 2)))


def measure(executor: str, num_experts: int, tokens: int, width: int, repeats: int):
  """Median milliseconds and GFLOP of one step."""
  keys = jax.random.split(jax.random.key(0, impl='rbg'), 4)
  params = {
    'kernel_in': jax.random.normal(keys[0], (num_experts, width, 2 * width)) / 8,
    'bias_in': jnp.zeros((num_experts, 2 * width)),
    'kernel_out': jax.random.normal(keys[1], (num_experts, 2 * width, width)) / 8,
    'bias_out': jnp.zeros((num_experts, width)),
  }
  x = jax.random.normal(keys[2], (tokens, width))
  logits = jax.random.normal(keys[3], (tokens, num_experts))
  step = make_step(executor, num_experts, tokens)
  flops = count_flops(step.trace(params, x, logits).jaxpr, jax.default_backend())
  jax.block_until_ready(step(params, x, logits))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(step(params, x, logits))
    times.append(time.perf_counter() - start)
  return 1e3 * statistics.median(times), flops / 1e9


def main() -> None:
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--tokens', type=int, default=16384)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--experts', type=int, nargs='+', default=[8, 16, 32, 64])
  parser.add_argument('--repeats', type=int, default=5)
  a = parser.parse_args()
  print(f'{a.tokens} tokens of width {a.width}, k = {TOP_K}, {jax.devices()[0].device_kind}\n')
  print('| experts | dense ms | dense GFLOP | capacity ms | capacity GFLOP |')
  print('|--:|--:|--:|--:|--:|')
  for experts in a.experts:
    cells = [
      f'{value:.1f}'
      for executor in ('dense', 'capacity')
      for value in measure(executor, experts, a.tokens, a.width, a.repeats)
    ]
    print(f'| {experts} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
