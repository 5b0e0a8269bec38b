"""(a) The device against the CPU: forward, gradient, one step."""

import functools
from typing import Any

import jax
import numpy as np

from mome_jax.models import build_model
from tests.benchmarks.accelerator import networks
from tests.benchmarks.accelerator.runner import Case, Part, Settings

# Largest difference over the largest number that still is rounding.
TOLERANCE = {'float32': 2e-3, 'bfloat16': 6e-2}


def cases(settings: Settings) -> list[Case]:
  """Backbones in both precisions."""
  backbones = ('unet',) if settings.tiny else tuple(networks.CONFIGS)
  return [
    Case(f'{name} {dtype}', functools.partial(_compare, name, dtype, settings.tiny))
    for name in backbones
    for dtype in TOLERANCE
  ]


def _compare(backbone: str, dtype: str, tiny: bool) -> dict:
  """The device in `dtype` against the CPU in float32, with the same parameters and batch."""
  side = 16 if tiny else 64
  device, cpu = jax.devices()[0], jax.devices('cpu')[0]
  # The generator behind fresh parameters gives other numbers on another kind of device.
  start, expected = _one_step(backbone, 'float32', tiny, side, cpu)
  _, measured = _one_step(backbone, dtype, tiny, side, device, start)
  differences = {key: _difference(measured[key], expected[key]) for key in expected}
  worst = max(value for key, value in differences.items() if key != 'step')
  if not worst < TOLERANCE[dtype]:
    raise ValueError(f'differs from the CPU by {worst:.1e} of the largest number: {differences}')
  return {**differences, 'passed': 'yes'}


def _one_step(
  backbone: str, dtype: str, tiny: bool, side: int, device: jax.Device, start: Any = None
) -> tuple[Any, dict[str, np.ndarray]]:
  """The state before a step from `start`, or a fresh one, and what is compared of the step."""
  config = networks.config_of(backbone, tiny=tiny, side=side, batch=1, dtype=dtype)
  step = networks.TrainStep(config, device)
  if start is not None:
    step.state = jax.tree.map(lambda s, t: jax.device_put(s, t.sharding), start, step.state)
  start = jax.tree.map(np.array, step.state)
  model = build_model(config.model)
  params = step.state.params['model']
  text = np.random.default_rng(1).normal(size=(2, config.text.d_model)).astype(np.float32)
  image = step.inputs[0]['image']

  def loss(params):
    logits = model.apply({'params': params}, image, text)[0]
    return networks.loss_of(logits), logits

  gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  forward = np.array(logits)
  step()
  after, before = step.state.params['model'], start.params['model']
  moved = jax.tree.map(lambda new, old: np.asarray(new) - old, after, before)
  return start, {'forward': forward, 'gradient': _flat(gradient), 'step': _flat(moved)}


def _flat(tree: object) -> np.ndarray:
  return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


PART = Part(
  'The device against the CPU in float32: the largest difference over the largest number, of '
  'logits, gradients and of what one step of AdamW changes (which amplifies rounding where a '
  'gradient is nearly zero);',
  {'forward': 'forward', 'gradient': 'gradient', 'step': 'one step', 'passed': 'passed'},
  cases,
)
