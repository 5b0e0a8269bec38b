"""The train step of a network of a few numbers, on cases that are labelled in part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.anatomy import IGNORE_CODE
from mome_jax.configs import base
from mome_jax.training import steps
from mome_jax.training.state import TrainState

K, B, N = 3, 16, 4  # classes, cases, voxels along a side


class Linear:
  """Logits of a voxel are its channels times a matrix that the text gives, at two scales."""

  def apply(self, variables, image, text, *_, **__):
    weights = variables['params']['kernel'] @ text.T
    logits = image @ weights + variables['params']['bias']
    coarse = logits.reshape(len(image), N // 2, 2, N // 2, 2, N // 2, 2, -1).mean((2, 4, 6))
    return logits, {
      'expert_logits': [jnp.moveaxis(x, -1, 1) for x in (logits, coarse)],
      'banks': {},
    }


class Encoder:
  """A text encoder: a matrix."""

  def apply(self, variables, ids, mask):
    return ids.astype(jnp.float32) @ variables['params']


def example():
  """Cases that label very different numbers of classes, some without any target."""
  rng = np.random.default_rng(0)
  supervised = rng.random((B, K)) < np.linspace(0, 1, B)[:, None]
  label = rng.choice([0, 1, 2, 3, IGNORE_CODE], (B, N, N, N), p=(0.7, 0.1, 0.1, 0.05, 0.05))
  label[::3] = 0
  label[1] = IGNORE_CODE
  low = np.where(rng.random((B, K)) < 0.3, 1.0, -np.inf)
  batch = {
    'image': rng.normal(size=(B, N, N, N, 2)).astype(np.float32),
    'label': label.astype(np.uint8),
    'supervised': supervised,
    'absent': np.random.default_rng(1).random((B, K)) < 0.3,
    'frame': np.tile(np.float32([0, 0, 1, 0]), (B, 1)),
    'slice_range': np.stack([low, np.full((B, K), np.inf)], -1).astype(np.float32),
  }
  draw = lambda rows: {'ids': rng.integers(0, 9, (rows, 5)), 'mask': np.ones((rows, 5), bool)}
  prompts = {'sampled': draw(K), 'default': draw(K), 'negative': draw(2)}
  params = {
    'model': {'kernel': jnp.asarray(rng.normal(size=(2, 4)), jnp.float32), 'bias': jnp.zeros(())},
    'text': jnp.asarray(rng.normal(size=(5, 4)) / 5, jnp.float32),
  }
  table = np.zeros((256, K), bool)
  table[[1, 2, 3], [0, 1, 2]] = True
  return params, batch, prompts, jnp.asarray(table)


def one_step(parts, skip=0, freeze=()):
  """step(params, batch, prompts) -> (parameters, metrics) of plain descent at rate 1."""
  *_, table = example()
  config = base.get_config().train
  config.update({'accumulate': parts, 'skip_nonfinite': skip, 'text_rate': 1.0, 'freeze': freeze})
  loss_fn = steps.make_loss_fn(Linear(), Encoder(), table, config)
  optimizer = optax.sgd(1.0)
  if skip:
    optimizer = optax.apply_if_finite(optimizer, skip)
  step = jax.jit(steps.make_train_step(loss_fn, steps.make_count_fn(table), optimizer, config))

  def run(params, batch, prompts, moments=None, done=0):
    moments = optimizer.init(params) if moments is None else moments
    state, metrics = step(TrainState(jnp.int32(done), params, params, moments), batch, prompts)
    return state, metrics

  return run
