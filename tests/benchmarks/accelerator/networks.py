"""The networks that are measured: of the full-size configs, or tiny ones; batches for them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mome_jax.configs import paper_resenc_unet, paper_swin_unetr, paper_unet
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import compilation, optimizer, sharding, state, steps
from mome_jax.training.flops import count_flops

CONFIGS = {'unet': paper_unet, 'resenc_unet': paper_resenc_unet, 'swin_unetr': paper_swin_unetr}
# Dense bfloat16 TFLOP/s that the makers state of one device.
PEAK = {
  'H100': 989, 'H200': 989, 'A100': 312, 'L4': 121, 'A10': 125, 'V100': 125,
  'TPU v4': 275, 'TPU v5 lite': 197, 'TPU v5e': 197, 'TPU v5p': 459, 'TPU v5': 459,
  'TPU v6 lite': 918, 'TPU v6e': 918,
}  # fmt: skip


def config_of(backbone: str, *, tiny: bool, side: int, batch: int, dtype: str) -> ConfigDict:
  """The config of the paper on a backbone, with sizes as asked for."""
  config = CONFIGS[backbone].get_config()
  config.data.patch = config.evaluation.window = (side,) * 3
  config.train.batch_size = batch
  config.model.dtype = dtype
  if tiny:
    config.model.backbone.size = 'tiny'
    config.classes = config.classes[:2]
    config.model.remat = False
    config.model.scales = (0, 1)
    config.train.negatives = 0
    config.text.num_layers = 1
  return config


def make_batch(config: ConfigDict) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """A batch of noise with labels of every class, and prompts that say nothing."""
  rng = np.random.default_rng(0)
  rows, patch, k = config.train.batch_size, tuple(config.data.patch), len(config.classes)
  bounds = np.array([-1e9, 1e9], np.float32)
  batch = {
    'image': rng.random((rows, *patch, len(config.data.windows)), np.float32),
    'label': rng.integers(0, k + 1, (rows, *patch)).astype(np.uint8),
    'supervised': np.ones((rows, k), bool),
    'frame': np.zeros((rows, 4), np.float32),
    'slice_range': np.tile(bounds, (rows, k, 1)),
  }
  words = lambda count: {
    'ids': rng.integers(1, config.text.vocab_size, (count, 8)).astype(np.int32),
    'mask': np.ones((count, 8), bool),
  }
  prompts = {'sampled': words(k), 'default': words(k)}
  if config.train.negatives:
    prompts['negative'] = words(config.train.negatives)
  return batch, prompts


class TrainStep:
  """The whole train step of a config on one device, with a fresh state."""

  def __init__(self, config: ConfigDict, device: jax.Device):
    self.config = config
    mesh = sharding.local_mesh([device])
    model, encoder = build_model(config.model), build_text_encoder(config.text)
    transformation = optimizer.make_optimizer(config.train)
    with jax.set_mesh(mesh):
      self.state, abstract = state.init_state(config, mesh, model, encoder, transformation)
      table = np.zeros((256, len(config.classes)), bool)
      table[np.arange(1, len(config.classes) + 1), np.arange(len(config.classes))] = True
      step = steps.jit_train_step(config, model, encoder, transformation, abstract, table)
      everywhere = jax.sharding.NamedSharding(mesh, sharding.REPLICATED)
      self.inputs = jax.device_put(make_batch(config), everywhere)
      traced = step.trace(self.state, *self.inputs)
      self.flops = count_flops(traced.jaxpr, device.platform)
      start = time.perf_counter()
      self.compiled = traced.lower().compile()
    self.compile_seconds = time.perf_counter() - start

  def __call__(self) -> dict[str, jax.Array]:
    """One step; returns its metrics when they are there."""
    self.state, metrics = self.compiled(self.state, *self.inputs)
    return jax.block_until_ready(metrics)


def peak_tflops() -> float | None:
  """Of the first device, as its maker states it; None where that is not known."""
  kind = jax.devices()[0].device_kind
  return next((float(peak) for name, peak in PEAK.items() if name in kind), None)


def mfu(flops: float, seconds: float) -> float | None:
  """Share of what the device could do."""
  peak = peak_tflops()
  return peak and flops / seconds / (peak * 1e12)


def peak_bytes(compiled: Any) -> float:
  """Gigabytes of the device that a program needs, as its compiler says."""
  sizes = compiled.memory_analysis()
  total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  return (total - sizes.alias_size_in_bytes) / 1e9


def seconds_of(function: Callable[[], Any], repeats: int) -> float:
  """Median of some calls after one that warms up; `function` waits for its result."""
  function()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def jit(function: Callable, **options: Any) -> Any:
  """As the product compiles."""
  return compilation.jit(function, jax.default_backend(), **options)


def loss_of(features: Any) -> jax.Array:
  """What backbones are differentiated of, in both frameworks: the mean square of the finest."""
  return jnp.square(features.astype(jnp.float32)).mean()
