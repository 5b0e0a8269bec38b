"""The training loss and the step as a whole, of models that say what they are told to."""

import types

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mome_jax.configs import base
from mome_jax.training import loss_terms, sharding, steps
from mome_jax.training.state import TrainState

CONFIG = ConfigDict(
  {
    'log_dice': False,
    'expert_loss': 1.0,
    'text_loss': 0.0,
    'negative_loss': 0.0,
    'absent_loss': 0.0,
    'outside_loss': 0.0,
  }
)


def test_a_coarse_expert_is_not_taught_less_organ_at_the_border_of_a_range():
  """All organ, contoured above 2 mm: the lower of two blocks is half valid, and is taught 1."""
  coarse = jnp.array([-1.0, 2.0]).reshape(1, 1, 1, 1, 2)
  logits, aux = jnp.zeros((1, 2, 2, 4, 1)), {'expert_logits': [None, coarse], 'banks': {}}
  model = types.SimpleNamespace(apply=lambda *_, **__: (logits, aux))
  batch = {
    'image': jnp.zeros((1, 2, 2, 4, 1)),
    'label': jnp.ones((1, 2, 2, 4), jnp.uint8),
    'supervised': jnp.ones((1, 1), bool),
    'absent': jnp.zeros((1, 1), bool),
    'frame': jnp.array([[0.0, 0.0, 2.0, 1.0]]),  # slices at 1, 3, 5, 7 mm
    'slice_range': jnp.array([[[2.0, np.inf]]]),
  }
  table = jnp.zeros((256, 1), bool).at[1].set(True)
  prompts = dict.fromkeys(('sampled', 'default'), {'vectors': jnp.zeros((1, 3))})
  loss_fn = steps.make_loss_fn(model, None, table, CONFIG)
  _, metrics = loss_fn({'model': {}}, batch, prompts)
  weight, p = np.array([0.5, 1]), 1 / (1 + np.exp([1.0, -2.0]))
  bce = -(weight * np.log(p)).sum() / 1.5
  dice = 1 - (2 * (weight * p).sum() + 1) / ((weight * p).sum() + 1.5 + 1)
  np.testing.assert_allclose(metrics['loss_experts'], bce + dice, rtol=1e-6)


def test_the_losses_of_coarser_experts_are_averaged():
  """Of 1 and 2 their mean; the finest is taught by the mixture alone."""
  given = {2: 1.0, 4: 2.0}

  def of_blocks(scores, *_, **__):
    return given[8 // scores.shape[-1]], 0.0

  inputs = types.SimpleNamespace(
    expert_logits=[jnp.zeros((1, 1, n, n, n)) for n in (8, 4, 2)],
    logits=jnp.zeros((1, 1, 8, 8, 8)),
    targets=jnp.zeros((1, 1, 8, 8, 8), bool),
    valid=jnp.ones((1, 1, 8, 8, 8), bool),
    counts=None,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loss_terms.losses, 'masked_bce_dice', of_blocks)
    assert loss_terms.experts(inputs) == 1.5


@pytest.mark.parametrize('parts', [1, 4])
def test_a_bank_attends_to_classes_and_adds_its_losses(parts):
  """Prompts of other anatomy are none of the classes; of a part of a batch the losses are a part.

  One voxel in four is of the class. Expert 1 takes all but the first block, expert 0 the first.
  """
  asked = []

  def apply(variables, image, text, trained, *, train):
    asked.append((text, trained, train))
    report = {
      'balance': 3.0, 'z': 5.0, 'load': jnp.array([0.1, 0.9]),
      'experts': jnp.array([0, 1]).reshape(1, 1, 1, 2, 1),
    }  # fmt: skip
    logits = jnp.zeros((1, 2, 2, 4, len(text)))
    return logits, {'expert_logits': [jnp.moveaxis(logits, -1, 1)], 'banks': {1: report}}

  batch = {
    'image': jnp.zeros((1, 2, 2, 4, 1)),
    'label': jnp.zeros((1, 2, 2, 4), jnp.uint8).at[..., 1].set(1),
    'supervised': jnp.ones((1, 1), bool),
    'absent': jnp.zeros((1, 1), bool),
    'frame': jnp.zeros((1, 4)),
    'slice_range': jnp.array([[[-np.inf, np.inf]]]),
  }
  prompts = {
    'sampled': {'vectors': jnp.ones((1, 3))},
    'default': {'vectors': jnp.zeros((1, 3))},
    'negative': {'vectors': 2 * jnp.ones((2, 3))},
  }
  table = jnp.zeros((256, 1), bool).at[1].set(True)
  counts = jax.tree.map(lambda n: parts * n, steps.make_count_fn(table)(batch))
  loss = []
  for weights in ({'balance_loss': 0.5, 'z_loss': 0.25}, {'balance_loss': 0.0, 'z_loss': 0.0}):
    config = ConfigDict({**CONFIG.to_dict(), 'text_rate': 0.0, **weights})
    loss_fn = steps.make_loss_fn(types.SimpleNamespace(apply=apply), None, table, config)
    value, metrics = loss_fn({'model': {}}, batch, prompts, None if parts == 1 else counts)
    loss.append(value)
  np.testing.assert_allclose(loss[0] - loss[1], (0.5 * 3 + 0.25 * 5) / parts, rtol=1e-5)
  assert metrics['moe_1/balance'] == 3 / parts and metrics['moe_1/z'] == 5 / parts
  np.testing.assert_array_equal(metrics['moe_1/classes'], [[0.5], [0]])
  for text, trained, train in asked:
    np.testing.assert_array_equal(text[:, 0], [1, 2, 2])
    np.testing.assert_array_equal(trained[:, 0], [1])
    assert train


@pytest.mark.parametrize(('done', 'decay'), [(0, 0.1), (5, 0.4), (10**6, 0.999)])
def test_the_average_spans_as_many_steps_as_there_are(done, decay):
  """(1 + t) / (10 + t) of what was, up to the decay of the config; of the new parameters."""
  params, batch, prompts, _ = linear_model.example()
  state, _ = linear_model.one_step(1)(params, batch, prompts, done=done)
  assert state.step == done + 1
  for before, now, ema in zip(
    *map(jax.tree.leaves, (params, state.params, state.ema)), strict=True
  ):
    np.testing.assert_allclose(ema - now, decay * (before - now), rtol=1e-3, atol=2e-6)
    assert jnp.abs(before - now).max() > 1e-2


def test_the_state_is_donated_and_nothing_else():
  params, batch, prompts, table = linear_model.example()
  config = base.get_config()
  config.train.text_rate, config.train.skip_nonfinite = 1.0, 0
  optimizer = optax.adam(1.0)
  everywhere = NamedSharding(sharding.local_mesh(jax.devices()[:1]), P())
  state = TrainState(jnp.int32(0), params, params, optimizer.init(params))
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
  models = linear_model.Linear(), linear_model.Encoder()
  step = steps.jit_train_step(config, *models, optimizer, state, np.array(table))
  (of_state, *others), _ = step.lower(state, batch, prompts).args_info
  assert all(leaf.donated for leaf in jax.tree.leaves(of_state))
  assert not any(leaf.donated for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize(
  ('loss', 'slope', 'left_out'),
  [(1.0, 1.0, False), (np.nan, 1.0, True), (np.inf, 1.0, True), (1.0, 3e38, True)],
)
def test_what_is_left_out_though_every_slope_is_finite(loss, slope, left_out):
  """A loss that is not finite, and a norm beyond float32."""
  config = base.get_config().train
  optimizer = optax.apply_if_finite(optax.sgd(1.0), 2)

  def loss_fn(params, *_):
    return slope * params['model']['x'].sum(), {'loss': jnp.float32(loss)}

  step = steps.make_train_step(loss_fn, None, optimizer, config)
  params = {'model': {'x': jnp.zeros(4)}}
  state, metrics = step(TrainState(jnp.int32(0), params, params, optimizer.init(params)), {}, {})
  assert metrics['skipped'] == left_out
  np.testing.assert_array_equal(state.params['model']['x'], 0 if left_out else -slope)
