"""Time and memory of MoME and its peers on the same scan and the same cores.

  python -m tests.benchmarks.peers.speed runs/openkbp_cpu runs/peer_dynunet runs/peer_swinunetr

One held-out scan from its HU to the masks on its own grid, with the windows, overlap and rules that
each run is scored with; and one optimizer step on a batch in memory, with the patch that each was
trained with. Every measurement has a process of its own, which sees no TensorFlow and no other
framework; its highest resident size is the memory (on a GPU: what the framework says of the
device). FLOP are those of matrix products and convolutions. Prints two Markdown tables; ratios are
to the first run.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

_PEER = 'checkpoint.pt'
_STAGES = ('network', 'resample', 'blend', 'postprocess')


# ---------------------------------------------------------------------------- in their own process
def segment_ours(run: str, image: np.ndarray, spacing, repeats: int) -> dict:
  """Measurements of MoME's inference."""
  import jax

  from mome_jax import flops, steps
  from mome_jax.predictor import Predictor
  from mome_jax.text.prompts import default_prompts

  predictor = Predictor(run)
  names = predictor.config.classes
  segmenter = predictor.segmenter(names, default_prompts(names, predictor.template))
  text = predictor.embed(default_prompts(names, predictor.template))
  window = np.zeros((1, *segmenter.window, len(segmenter.windows)), np.float32)
  traced = jax.jit(steps.make_predict_step(predictor.model)).trace(
    predictor.params, text, window, predictor.context
  )
  flop = flops.count_flops(traced.jaxpr, jax.default_backend())
  count = sum(leaf.size for leaf in jax.tree.leaves(predictor.params))
  found = _time_scans(segmenter, predictor.config, image, spacing, repeats)
  return {**found, 'parameters': count, 'flop': flop, 'memory': _jax_memory()}


def segment_peer(run: str, image: np.ndarray, spacing, repeats: int) -> dict:
  """Measurements of a peer's inference."""
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  from tests.benchmarks.peers.inference import make_segmenter

  trainer, config = _load_peer(run)
  network = trainer.averaged()
  segmenter = make_segmenter(network, config, trainer.device)
  count = sum(p.numel() for p in network.parameters())
  found = _time_scans(segmenter, config, image, spacing, repeats)
  memory = _torch_memory()
  channels = torch.zeros((1, len(segmenter.windows), *segmenter.window), device=trainer.device)
  with FlopCounterMode(display=False) as counter, torch.inference_mode():
    network(channels)
  return {**found, 'parameters': count, 'flop': counter.get_total_flops(), 'memory': memory}


def step_ours(run: str, batch: dict[str, np.ndarray], repeats: int) -> dict:
  """Measurements of MoME's train step."""
  import jax

  from mome_jax import checkpoint, flops, sharding, state, steps
  from mome_jax.models import build_model
  from mome_jax.text import inputs

  config = checkpoint.load_config(run)
  text = inputs.for_training(config)
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  model, optimizer = build_model(config.model), state.make_optimizer(config.train)
  train_state, abstract = state.init_state(config, mesh, model, text.encoder, optimizer)
  step = steps.jit_train_step(
    config, model, text.encoder, optimizer, abstract, _code_table(config.classes)
  )
  prompts = sharding.replicate(mesh, text.batch(seed=0, step=0))
  on_device = sharding.shard_batch(mesh, batch, spatial=config.mesh.spatial)
  flop = flops.count_flops(step.trace(train_state, on_device, prompts).jaxpr, jax.default_backend())

  def run_step():
    nonlocal train_state
    train_state, metrics = step(train_state, on_device, prompts)
    jax.block_until_ready(metrics)

  first, seconds = _time(run_step, repeats)
  return {'first': first, 'seconds': seconds, 'flop': flop, 'memory': _jax_memory()}


def step_peer(run: str, batch: dict[str, np.ndarray], repeats: int) -> dict:
  """Measurements of a peer's train step."""
  from torch.utils.flop_counter import FlopCounterMode

  trainer, _ = _load_peer(run)
  run_step = lambda: float(trainer.update(batch, 0.5)['loss'])
  first, seconds = _time(run_step, repeats)
  memory = _torch_memory()
  with FlopCounterMode(display=False) as counter:
    run_step()
  return {'first': first, 'seconds': seconds, 'flop': counter.get_total_flops(), 'memory': memory}


def _load_peer(run: str):
  import torch

  from tests.benchmarks.peers import machine, recipes
  from tests.benchmarks.peers.trainer import Trainer

  device = machine.prepare(len(os.sched_getaffinity(0)))
  saved = torch.load(pathlib.Path(run, _PEER), map_location=device)
  config = recipes.make_config(saved['settings']['peer'], data_dir='', source='')
  trainer = Trainer(
    recipes.RECIPES[saved['settings']['peer']], config, _code_table(config.classes), device
  )
  trainer.restore(saved)
  return trainer, config


def _code_table(classes) -> np.ndarray:
  from input_pipeline.anatomy import TEMPLATE

  return TEMPLATE.code_table(classes)


def _time_scans(segmenter, config, image: np.ndarray, spacing, repeats: int) -> dict:
  from mome_jax import inference
  from mome_jax.clock import Clock

  clocks = []

  def scan():
    clocks.append(Clock())
    segmenter(image, spacing, clock=clocks[-1])

  first, seconds = _time(scan, repeats)
  stages = [clock.seconds() for clock in clocks[1:]]
  windows = 0

  def count(batch):
    nonlocal windows
    windows += 1
    return np.zeros((*batch.shape[:4], 1), np.float32)

  channels, overlap = segmenter.network_input(image, spacing), config.evaluation.overlap
  for _ in inference.sliding_window(count, channels, window=segmenter.window, overlap=overlap):
    pass
  parts = {
    stage: statistics.median(seconds.get(stage, 0.0) for seconds in stages) for stage in _STAGES
  }
  return {
    'first': first,
    'seconds': seconds,
    'windows': windows,
    'patch': segmenter.window,
    **parts,
  }


def _time(function: Callable[[], None], repeats: int) -> tuple[float, float]:
  """Seconds of the first call, which compiles and allocates, and the median of the others."""
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  return seconds[0], statistics.median(seconds[1:])


def _jax_memory() -> int:
  import jax

  stats = jax.local_devices()[0].memory_stats()
  return stats['peak_bytes_in_use'] if stats else _resident()


def _torch_memory() -> int:
  import torch

  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident()


def _resident() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------------------- in the first process
def isolated(function: Callable[..., dict], *args) -> dict:
  """The result of a function in a fresh process."""
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(function, args)


def read_data(args) -> tuple[np.ndarray, tuple[float, ...], Callable[[tuple, int], dict]]:
  """HU and spacing of a scan, and (patch, batch size) -> a training batch."""
  from input_pipeline import bricks, pipeline
  from mome_jax.configs import openkbp_cpu

  config = openkbp_cpu.get_config()
  template = bricks.read_template(args.data_dir, (args.source,), ())
  case = bricks.open_volumes(args.data_dir, args.source, template)[args.case]
  stores = [bricks.open_bricks(args.data_dir, args.source, template)]

  @functools.cache
  def batch(patch, size):
    config.data.patch = patch
    return next(pipeline.make_dataset(config.data, stores, config.classes, seed=0, batch_size=size))

  return case.image, case.geometry.spacing, batch


def _patch_and_batch(run: str) -> tuple[tuple[int, ...], int]:
  if not pathlib.Path(run, _PEER).is_file():
    from mome_jax import checkpoint

    config = checkpoint.load_config(run)
    return tuple(config.data.patch), config.train.batch_size
  import torch

  from tests.benchmarks.peers.recipes import RECIPES

  recipe = RECIPES[torch.load(pathlib.Path(run, _PEER))['settings']['peer']]
  return recipe.patch, recipe.batch_size


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', help='workdirs of MoME and of peers')
  parser.add_argument('--data_dir', default='runs/data')
  parser.add_argument('--source', default='openkbp')
  parser.add_argument('--case', type=int, default=0, help='number of the held-out scan')
  parser.add_argument('--threads', type=int, default=2, help='cores of every process')
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  image, spacing, batch = read_data(args)
  is_peer = {run: pathlib.Path(run, _PEER).is_file() for run in args.runs}

  shape = ' x '.join(map(str, image.shape))
  print(f'A scan of {shape} voxels; {len(os.sched_getaffinity(0))} cores\n')
  print('| run | parameters | window | windows | first, s | scan, s | ratio | network, s |', end='')
  print(' resample, s | blend, s | rules, s | GFLOP/s of network | memory, GB |')
  print('|:--|--:|:--|' + '--:|' * 10)
  reference = None
  for run, peer in is_peer.items():
    row = isolated(segment_peer if peer else segment_ours, run, image, spacing, args.repeats)
    reference = reference or row['seconds']
    speed = row['flop'] * row['windows'] / row['network'] / 1e9
    cells = [pathlib.Path(run).name, f'{row["parameters"]:,}', _size(row['patch']), row['windows']]
    cells += [row['first'], row['seconds'], row['seconds'] / reference]
    cells += [*(row[stage] for stage in _STAGES), f'{speed:.0f}', row['memory'] / 1e9]
    _print_row(cells)

  print('\n| run | patch | batch | first, s | step, s | patches/s | million voxels/s |', end='')
  print(' GFLOP | GFLOP/s | memory, GB |\n|:--|:--|' + '--:|' * 8)
  for run, peer in is_peer.items():
    patch, size = _patch_and_batch(run)
    row = isolated(step_peer if peer else step_ours, run, batch(patch, size), args.repeats)
    rate, gflop = size / row['seconds'], row['flop'] / 1e9
    cells = [pathlib.Path(run).name, _size(patch), size, row['first'], row['seconds'], rate]
    cells += [rate * np.prod(patch) / 1e6, f'{gflop:.1f}', f'{gflop / row["seconds"]:.0f}']
    _print_row([*cells, row['memory'] / 1e9])


def _size(patch) -> str:
  return ' x '.join(map(str, patch))


def _print_row(cells) -> None:
  text = (f'{cell:.2f}' if isinstance(cell, float) else str(cell) for cell in cells)
  print(f'| {" | ".join(text)} |', flush=True)


if __name__ == '__main__':
  main()
