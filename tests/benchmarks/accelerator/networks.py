"""The networks that are measured: of the full-size configs, or tiny ones; batches for them."""

import re
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
from mome_jax.training import compile_ahead, optimizer, roofline, sharding, state, steps
from mome_jax.training.flops import count_flops

CONFIGS = {'unet': paper_unet, 'resenc_unet': paper_resenc_unet, 'swin_unetr': paper_swin_unetr}
# Dense bfloat16 (V100: float16) FLOP/s that the makers state of one device; the first name that
# fits counts. A plain H100, H200 or V100 is the one on an SXM board.
PEAK = {'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'H200 NVL': 835e12, 'H200': 989e12,
        'A100': 312e12, 'L4': 121e12, 'A10': 125e12, 'V100-PCIE': 112e12, 'V100': 125e12,
        'TPU v4': 275e12}  # fmt: skip
_FAMILIES = {'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5p': 'v5p', 'TPU v5': 'v5p',
             'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e'}  # fmt: skip
PEAK |= {name: roofline.CHIPS[family].flops for name, family in _FAMILIES.items()}


def sizes(tiny: bool) -> list[tuple[int, int]]:
  """Sides of the patch and patches of a batch, the smallest first."""
  sides, batches = ((16,), (1,)) if tiny else ((96, 128), (1, 2, 4, 8))
  return [(side, batch) for side in sides for batch in batches]


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
    'absent': np.zeros((rows, k), bool),
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


def peak_flops(kind: str) -> float | None:
  """Of a `device_kind`, as its maker states it; None where that is not known."""
  if re.search(r'\bMIG\b', kind):  # a part of one
    return None
  names = (name for name in PEAK if re.search(rf'\b{name}\b', kind))  # an L40S is no L4
  return next((PEAK[name] for name in names), None)


def mfu(flops: float, seconds: float) -> float | None:
  """Share of what the device could do."""
  peak = peak_flops(jax.devices()[0].device_kind)
  return peak and flops / seconds / peak


def peak_gigabytes(compiled: jax.stages.Compiled) -> float:
  """Of the device, what a program needs as its compiler says."""
  return compile_ahead.memory(compiled)['peak'] / 1e9


def seconds_of(function: Callable[[], Any], repeats: int) -> float:
  """Median of some calls after one that warms up; `function` waits for its result."""
  function()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def loss_of(features: Any) -> jax.Array:
  """What backbones are differentiated of, in both frameworks: the mean square of the finest."""
  return jnp.square(features.astype(jnp.float32)).mean()
