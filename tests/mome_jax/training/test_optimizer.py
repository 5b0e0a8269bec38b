"""The optimizer's rates, parameter by parameter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mome_jax.configs import baseline_unet, demo
from mome_jax.errors import ConfigError
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import optimizer, state
from mome_jax.training.optimizer import OPTIMIZERS, learning_rate, make_optimizer

RATE, GENERATOR, MIXTURE, TEXT, LAYER = 1e-2, 0.25, 0.5, 0.125, 0.375
# What an Adam step of gradient 1 moves a parameter by, in learning rates; all others move by 1.
SCALED = {
  r'model/text/kernel': LAYER * GENERATOR,
  r'model/(context/project|heads/controller|router/query)/kernel': GENERATOR,
  r'model/router/key_\d': GENERATOR,
  r'model/router/(bias|prior)_\d': MIXTURE,
  r'model/mixture_share': MIXTURE,
  r'text/.*': TEXT,
}
AT_ONE = (
  'model/text/bias',
  'model/context/project/bias',
  'model/context/norm/scale',
  'model/heads/controller/bias',
  'model/router/query/bias',
  'model/router/norm_0/scale',
  'model/expert_0/project/kernel',
  'model/expert_1/bank/gate/kernel',
  'model/expert_1/bank/kernel_in',
)


def sparse():
  config = demo.get_config()
  config.model.backbone.size = 'tiny'
  config.model.anchor = 'finest'
  config.model.bank.scales = (1,)
  return config


def baseline():
  config = baseline_unet.get_config()
  config.model.backbone.size = 'tiny'
  return config


def zeros(config):
  """All parameters by name and number of axes; two numbers along each make few programs."""
  frozen = config.text.mode == 'frozen'
  encoder = None if frozen else build_text_encoder(config.text)
  create = functools.partial(state.init_params, config, build_model(config.model), encoder)
  shapes = jax.eval_shape(create, jax.random.key(0))
  return jax.tree.map(lambda leaf: np.zeros((2,) * leaf.ndim, np.float32), shapes)


def flat(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {'/'.join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize('experiment', [sparse, baseline])
def test_what_one_step_moves(experiment):
  """With gradients of 1 in numbers that are 0, Adam moves each by minus its learning rate."""
  config = experiment()
  config.train.update(
    {'learning_rate': RATE, 'warmup_steps': 0, 'clip_norm': 1e9, 'weight_decay': 0.5}
  )
  config.train.update({'generator_rate': GENERATOR, 'mixture_rate': MIXTURE})
  config.train.update({'text_rate': TEXT, 'text_layer_rate': LAYER})
  optimizer = make_optimizer(config.train)
  params = zeros(config)
  updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)
  moved = flat(optax.apply_updates(params, updates))
  scaled = SCALED if experiment is sparse else SCALED | {r'model/text/kernel': GENERATOR}
  rates = dict.fromkeys(SCALED, 0)
  for name, value in moved.items():
    pattern = next((pattern for pattern in SCALED if re.fullmatch(pattern, name)), None)
    rates[pattern] = rates.get(pattern, 0) + 1
    expected = -RATE * scaled.get(pattern, 1.0)
    np.testing.assert_allclose(value, np.full(value.shape, expected), rtol=1e-5, err_msg=name)
  if experiment is sparse:  # nothing above is a name that no parameter has
    assert all(rates.values())
    assert all(any(name.startswith(start) for name in moved) for start in AT_ONE)


def three():
  """Parameters of three kinds, and gradients of 1."""
  params = {
    'model': {
      'backbone': {'conv': {'kernel': np.ones((2, 2)), 'bias': np.ones(2)}},
      'expert_0': {'project': {'kernel': np.ones((2, 2))}},
    },
    'text': {'embed': np.ones((2, 2))},
  }
  params = jax.tree.map(jnp.asarray, params)
  return params, jax.tree.map(jnp.ones_like, params)


def updates(**values):
  config = demo.get_config().train
  config.update({'learning_rate': RATE, 'warmup_steps': 0, 'weight_decay': 0.0, 'text_rate': 1.0})
  config.update(values)
  optimizer = make_optimizer(config)
  params, slopes = three()
  moved, state = optimizer.update(slopes, optimizer.init(params), params)
  return {name: float(value.mean()) / -RATE for name, value in flat(moved).items()}, state


def test_rates_by_path_and_what_is_frozen():
  kernel, bias = 'model/backbone/conv/kernel', 'model/backbone/conv/bias'
  rates = ((r'.*/bias', 0.5), ('model/backbone', 0.25), ('model', 3.0))
  moved, _ = updates(rates=rates)
  expected = {kernel: 0.25, bias: 0.5, 'model/expert_0/project/kernel': 3.0, 'text/embed': 1.0}
  assert moved == pytest.approx(expected, rel=1e-4)
  moved, state = updates(freeze=('model/backbone', r'text/em.*'), clip_norm=1e9)
  assert moved == pytest.approx(
    {kernel: 0, bias: 0, 'text/embed': 0, 'model/expert_0/project/kernel': 1.0}, rel=1e-4
  )
  held = [leaf.size for leaf in jax.tree.leaves(state)]
  assert sum(n for n in held if n > 1) == 2 * 4  # Adam's moments of what is left
  moved, _ = updates(rates=(('model/backbone', 0.25),), freeze=('model/backbone',))
  assert moved[kernel] == moved[bias] == 0


@pytest.mark.parametrize(
  ('field', 'value'), [('freeze', ('model/backbon',)), ('rates', (('model/backbon', 2.0),))]
)
def test_a_pattern_that_fits_nothing_is_refused(field, value):
  with pytest.raises(ConfigError, match=f"train.{field}: .*'model/backbon'; did you mean model/b"):
    updates(**{field: value})


@pytest.mark.parametrize(
  ('freeze', 'text_rate'),
  [(('model', 'text'), 1.0), (('(?!model/router).*',), 1.0), (('model',), 0.0)],
)
def test_a_run_that_would_learn_nothing_is_refused(freeze, text_rate):
  with pytest.raises(ConfigError, match='train.freeze: keeps every parameter'):
    updates(freeze=freeze, text_rate=text_rate)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_goes_down_and_decays_weights_alone(name):
  moved, _ = updates(optimizer=name, clip_norm=1e9)
  assert all(value > 0.1 for value in moved.values())
  decayed, _ = updates(optimizer=name, clip_norm=1e9, weight_decay=0.5)
  bias = 'model/backbone/conv/bias'
  assert decayed[bias] == pytest.approx(moved[bias])
  if name != 'lamb':  # which normalises what it adds
    rest = moved.keys() - {bias}
    assert all(decayed[key] > 1.2 * moved[key] for key in rest)


def test_tables_of_relative_positions_and_biases_of_experts_do_not_decay():
  params = {
    'model': {
      'attention': {'position_bias': np.ones((9, 3)), 'kernel': np.ones((3, 3))},
      'bank': {'bias_in': np.ones((8, 4)), 'kernel_in': np.ones((8, 2, 4))},
    },
    'text': {'relpos': {'embedding': np.ones((32, 4))}},
  }
  assert optimizer._decays(params) == {
    'model': {
      'attention': {'position_bias': False, 'kernel': True},
      'bank': {'bias_in': False, 'kernel_in': True},
    },
    'text': {'relpos': {'embedding': False}},
  }


def test_nesterov_momentum_of_sgd():
  moved, _ = updates(optimizer='sgd', clip_norm=1e9)
  assert moved['text/embed'] == pytest.approx(1 + 0.99)


def test_gradients_are_clipped_by_their_norm_and_what_decays_is_not():
  """Fourteen of them are 1; weights are 1."""
  moved, _ = updates(optimizer='sgd', clip_norm=0.5, weight_decay=0.25)
  clipped = 0.5 / 14**0.5
  assert moved['text/embed'] == pytest.approx(1.99 * (clipped + 0.25))
  assert moved['model/backbone/conv/bias'] == pytest.approx(1.99 * clipped)
  moved, _ = updates(optimizer='sgd', clip_norm=14**0.5 + 1)
  assert moved['text/embed'] == pytest.approx(1.99)


def test_as_many_steps_in_a_row_are_left_out_as_the_config_says():
  config = demo.get_config().train
  config.update({'skip_nonfinite': 2, 'warmup_steps': 0})
  optimizer = make_optimizer(config)
  params, slopes = three()
  state = optimizer.init(params)
  bad = jax.tree.map(lambda g: g * jnp.nan, slopes)
  size = lambda updates: float(optax.tree.norm(updates))
  for expected in (0, 0, np.nan):
    moved, state = optimizer.update(bad, state, params)
    np.testing.assert_equal(size(moved), expected)


@pytest.mark.parametrize(
  ('name', 'middle', 'end'),
  [('cosine', 0.5, 0), ('linear', 0.5, 0), ('polynomial', 0.5**0.9, 0), ('constant', 1, 1)],
)
def test_schedules(name, middle, end):
  config = demo.get_config().train
  config.update({'schedule': name, 'learning_rate': 2.0, 'warmup_steps': 10, 'steps': 110})
  schedule = learning_rate(config)
  values = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
  assert values == pytest.approx([0, 1, 2, 2 * middle, 2 * end], abs=1e-6)
  config.warmup_steps = 0
  assert float(learning_rate(config)(0)) == 2.0


def test_a_mixture_with_an_anchor_can_take_over():
  """A share that gains from every step reaches tanh(share) = 0.9 well before the end."""
  config = demo.get_config().train
  config.update({'steps': 1500, 'learning_rate': 3e-3, 'warmup_steps': 50})
  optimizer = make_optimizer(config)
  params = {'model': {'mixture_share': jnp.zeros(())}}

  def step(carry, _):
    params, moments = carry
    updates, moments = optimizer.update(jax.tree.map(lambda p: p - 10, params), moments, params)
    return (optax.apply_updates(params, updates), moments), None

  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=config.steps)
  assert np.tanh(params['model']['mixture_share']) > 0.9
