"""The optimizer's rates, parameter by parameter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mome_jax.configs import baseline_unet, demo
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import state
from mome_jax.training.optimizer import make_optimizer

RATE, GENERATOR, MIXTURE, TEXT = 1e-2, 0.25, 0.5, 0.125
# What an Adam step of gradient 1 moves a parameter by, in learning rates; all others move by 1.
SCALED = {
  r'model/(text|context/project|heads/controller|router/query)/kernel': GENERATOR,
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
  config.train.update({'generator_rate': GENERATOR, 'mixture_rate': MIXTURE, 'text_rate': TEXT})
  optimizer = make_optimizer(config.train)
  params = zeros(config)
  updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)
  moved = flat(optax.apply_updates(params, updates))
  rates = dict.fromkeys(SCALED, 0)
  for name, value in moved.items():
    pattern = next((pattern for pattern in SCALED if re.fullmatch(pattern, name)), None)
    rates[pattern] = rates.get(pattern, 0) + 1
    expected = -RATE * SCALED.get(pattern, 1.0)
    np.testing.assert_allclose(value, np.full(value.shape, expected), rtol=1e-5, err_msg=name)
  if experiment is sparse:  # nothing above is a name that no parameter has
    assert all(rates.values())
    assert all(any(name.startswith(start) for name in moved) for start in AT_ONE)


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
