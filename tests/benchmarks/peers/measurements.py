"""What `speed` measures, each in a process of its own: imports stay inside the functions."""

import dataclasses
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

CHECKPOINT = 'checkpoint.pt'  # of a peer
STAGES = ('network', 'resample', 'blend', 'postprocess')


def segment_ours(run: str, image: np.ndarray, spacing, repeats: int) -> dict:
  """Measurements of MoME's inference."""
  import jax

  from mome_jax.inference import steps
  from mome_jax.inference.loaded_model import Predictor
  from mome_jax.text.prompts import default_prompts
  from mome_jax.training import flops

  predictor = Predictor(run)
  names = predictor.config.classes
  segmenter = predictor.segmenter(names, default_prompts(names, predictor.template))
  text = predictor.embed(default_prompts(names, predictor.template))
  settings = segmenter.settings
  window = np.zeros((1, *settings.tiling.window, len(settings.hu_windows)), np.float32)
  traced = jax.jit(steps.make_predict_step(predictor.model)).trace(
    predictor.params, text, window, predictor.trained_text
  )
  flop = flops.count_flops(traced.jaxpr, jax.default_backend())
  count = sum(leaf.size for leaf in jax.tree.leaves(predictor.params))
  times = _time_scans(segmenter, predictor.config, image, spacing, repeats)
  return {**times, 'parameters': count, 'flop': flop, 'memory': _jax_memory()}


def segment_peer(run: str, image: np.ndarray, spacing, repeats: int) -> dict:
  """Measurements of a peer's inference."""
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  from tests.benchmarks.peers.inference import make_segmenter

  trainer, config = _load_peer(run)
  network = trainer.averaged()
  segmenter = make_segmenter(network, config, trainer.device)
  count = sum(p.numel() for p in network.parameters())
  times = _time_scans(segmenter, config, image, spacing, repeats)
  memory = _torch_memory()
  settings = segmenter.settings
  shape = 1, len(settings.hu_windows), *settings.tiling.window
  channels = torch.zeros(shape, device=trainer.device)
  with FlopCounterMode(display=False) as counter, torch.inference_mode():
    network(channels)
  return {**times, 'parameters': count, 'flop': counter.get_total_flops(), 'memory': memory}


def step_ours(run: str, batch: dict[str, np.ndarray], repeats: int) -> dict:
  """Measurements of MoME's train step."""
  import jax

  from mome_jax import checkpoint
  from mome_jax.models import build_model
  from mome_jax.text import prompt_inputs
  from mome_jax.training import flops, sharding, state, steps
  from mome_jax.training.optimizer import make_optimizer

  config = checkpoint.load_config(run)
  text = prompt_inputs.for_training(config)
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  model, optimizer = build_model(config.model), make_optimizer(config.train)
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
  saved = torch.load(pathlib.Path(run, CHECKPOINT), map_location=device)
  settings = {'experiment': recipes.EXPERIMENT, **saved['settings']}
  config = recipes.make_config(settings['peer'], settings['experiment'])
  config.classes = settings['classes']
  trainer = Trainer(recipes.RECIPES[settings['peer']], config, _code_table(config.classes), device)
  trainer.restore(saved)
  return trainer, config


def _code_table(classes) -> np.ndarray:
  from input_pipeline.anatomy import TEMPLATE

  return TEMPLATE.code_table(classes)


def _time_scans(segmenter, config, image: np.ndarray, spacing, repeats: int) -> dict:
  from mome_jax.inference import sliding_window
  from mome_jax.inference.stage_clock import Clock

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
    return np.zeros((len(batch), 1, *batch.shape[1:4]), np.float32)

  tiling = dataclasses.replace(segmenter.settings.tiling, batch_size=1)
  for _ in sliding_window.sliding_window(count, segmenter.network_input(image, spacing), tiling):
    pass
  parts = {
    stage: statistics.median(seconds.get(stage, 0.0) for seconds in stages) for stage in STAGES
  }
  return {
    'first': first,
    'seconds': seconds,
    'windows': windows,
    'patch': tiling.window,
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
