"""(a) The device against the CPU: forward, gradient, one step; then the layers' own tests."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

import jax
import numpy as np

from mome_jax.models import build_model
from tests.benchmarks.accelerator import networks
from tests.benchmarks.accelerator.runner import Case, Part, Settings

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Largest difference over the largest number that still is rounding.
TOLERANCE = {'float32': 2e-3, 'bfloat16': 6e-2}


def cases(settings: Settings) -> list[Case]:
  """Backbones in both precisions, and the tests of the layers."""
  backbones = ('unet',) if settings.tiny else tuple(networks.CONFIGS)
  compared = [
    Case(f'{name} {dtype}', functools.partial(_compare, name, dtype, settings.tiny))
    for name in backbones
    for dtype in TOLERANCE
  ]
  return [*compared, Case('tests of the layers', functools.partial(_layers, settings.tiny))]


def _compare(backbone: str, dtype: str, tiny: bool) -> dict:
  """The device in `dtype` against the CPU in float32, with the same parameters and batch."""
  side = 16 if tiny else 64
  device, cpu = jax.devices()[0], jax.devices('cpu')[0]
  measured = _one_step(backbone, dtype, tiny, side, device)
  expected = _one_step(backbone, 'float32', tiny, side, cpu)
  differences = {key: _difference(measured[key], expected[key]) for key in expected}
  worst = max(value for key, value in differences.items() if key != 'step')
  if not worst < TOLERANCE[dtype]:
    raise ValueError(f'differs from the CPU by {worst:.1e} of the largest number: {differences}')
  return {**differences, 'passed': 'yes'}


def _one_step(backbone: str, dtype: str, tiny: bool, side: int, device: jax.Device) -> dict:
  config = networks.config_of(backbone, tiny=tiny, side=side, batch=1, dtype=dtype)
  step = networks.TrainStep(config, device)
  model = build_model(config.model)
  params = step.state.params['model']
  text = np.random.default_rng(1).normal(size=(2, config.text.d_model)).astype(np.float32)
  image = step.inputs[0]['image']

  def loss(params):
    logits = model.apply({'params': params}, image, text)[0]
    return networks.loss_of(logits), logits

  gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  forward = np.array(logits)
  before = jax.tree.map(np.array, step.state.params['model'])
  step()
  moved = jax.tree.map(lambda new, old: np.asarray(new) - old, step.state.params['model'], before)
  return {'forward': forward, 'gradient': _flat(gradient), 'step': _flat(moved)}


def _flat(tree: object) -> np.ndarray:
  return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _layers(tiny: bool) -> dict:
  if not (importlib.util.find_spec('pytest') and importlib.util.find_spec('hypothesis')):
    raise ModuleNotFoundError('pytest and hypothesis are needed for the tests of the layers')
  only = ['--collect-only'] if tiny else []
  command = [
    sys.executable,
    '-m',
    'pytest',
    '-q',
    *only,
    'tests/mome_jax/ops',
    'tests/mome_jax/moe',
  ]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
  if process.returncode:
    raise ValueError(process.stdout[-280:])
  return {'passed': process.stdout.strip().splitlines()[-1].strip('= ')}


PART = Part(
  'The device against the CPU in float32: the largest difference over the largest number, of '
  'logits, gradients and of what one step of AdamW changes (which amplifies rounding where a '
  'gradient is nearly zero);',
  {'forward': 'forward', 'gradient': 'gradient', 'step': 'one step', 'passed': 'passed'},
  cases,
)
