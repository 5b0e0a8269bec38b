"""The layer that reads text, trained in the basis of the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mome_jax.configs import demo
from mome_jax.training.optimizer import OPTIMIZERS, make_optimizer
from mome_jax.training.text_basis import class_basis, with_basis

D, OUT, STEPS = 6, 3, 30
TARGET = np.random.default_rng(1).normal(size=(D, OUT)) * (1, 10, 100)


def turn(seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def trained(vectors, kernel, basis=None, **values):
  """What the layer makes of D vectors after some steps towards targets of different sizes."""
  config = demo.get_config().train
  config.update({'learning_rate': 0.1, 'warmup_steps': 0, 'clip_norm': 1e9, 'weight_decay': 0.1})
  config.update(values)
  optimizer = make_optimizer(config)
  params = {'model': {'text': {'kernel': jnp.asarray(kernel, jnp.float32), 'bias': jnp.zeros(OUT)}}}
  state = optimizer.init(params)
  if basis is not None:
    state = with_basis(state, basis)

  def answer(params):
    return vectors @ params['model']['text']['kernel'] + params['model']['text']['bias']

  gradient = jax.grad(lambda params: jnp.sum((answer(params) - TARGET) ** 2))
  for _ in range(STEPS):
    updates, state = optimizer.update(gradient(params), state, params)
    params = optax.apply_updates(params, updates)
  return np.asarray(answer(params))


@pytest.mark.parametrize('name', [name for name in OPTIMIZERS if name != 'lamb'])
def test_turned_and_longer_vectors_train_as_one_hot_ones(name):
  kernel = np.random.default_rng(2).normal(size=(D, OUT))
  expected = trained(np.eye(D), kernel, optimizer=name)
  vectors = 4.3 * turn()
  basis = class_basis(vectors)
  other = trained(vectors, turn().T @ kernel / 4.3, basis, optimizer=name)
  np.testing.assert_allclose(other, expected, rtol=2e-3, atol=2e-3)
  plain = trained(vectors, turn().T @ kernel / 4.3, optimizer=name)
  assert np.abs(plain - expected).max() > 0.05


def test_the_basis_of_classes():
  rng = np.random.default_rng(0)
  vectors = 3.0 * turn()[:4] + rng.normal(0, 0.2, (4, D))
  basis = class_basis(vectors)
  length = np.linalg.norm(vectors, axis=1).mean()
  np.testing.assert_allclose(basis @ basis.T, np.eye(D) / length**2, atol=1e-6)
  turned = vectors @ basis.T
  np.testing.assert_allclose(turned[:, :4], np.eye(4), atol=0.2)
  np.testing.assert_allclose(turned[:, 4:], 0, atol=1e-6)
  # No turn brings them nearer to one-hot vectors.
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  distance = lambda rows: np.sum((unit @ rows.T - np.eye(4)) ** 2)
  best = distance(basis[:4] * length)
  for _ in range(50):
    skew = rng.normal(0, 0.05, (D, D))
    nudge = np.linalg.qr(np.eye(D) + skew - skew.T)[0]
    assert distance(basis[:4] * length @ (nudge * np.sign(np.diag(nudge)))) >= best - 1e-6


def test_one_hot_vectors_keep_their_basis_and_too_many_classes_theirs():
  np.testing.assert_allclose(class_basis(np.eye(4)), np.eye(4), atol=1e-6)
  np.testing.assert_allclose(class_basis(2 * np.ones((9, D))), np.eye(D) / np.sqrt(24), atol=1e-6)
  assert np.isfinite(class_basis(np.zeros((2, D)))).all()
