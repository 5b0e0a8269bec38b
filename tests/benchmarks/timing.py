"""What the benchmarks against PyTorch share: the same cores for both, medians, Markdown."""

import os
import statistics
import time
from collections.abc import Callable


def use_cores(count: int) -> None:
  """Keeps this process on `count` cores; before JAX and PyTorch are imported, which count them."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def jit(function: Callable) -> Callable:
  """`function` compiled as the product compiles the network's programs."""
  import jax

  from mome_jax.runtime import compilation

  return compilation.jit(function, jax.default_backend())


def median_seconds(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
  """Median time of each function, which waits for its own result.

  The functions take turns, so that a slow moment of the machine meets all of them. Each warms up
  in each turn: the first call after another framework's pays for the pages that it gave back (8 s
  in place of 4.3 for a step of Swin UNETR).
  """
  seconds = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      function()
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(times) for name, times in seconds.items()}


def row(*cells) -> str:
  """One line of a Markdown table; floats with three digits."""
  return f'| {" | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells)} |'
