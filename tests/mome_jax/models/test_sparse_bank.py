"""Banks of sparse experts, alone and inside the network."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from mome_jax import ops
from mome_jax.models import MoME, mome, sparse_bank
from mome_jax.moe import losses, routing

pytestmark = pytest.mark.usefixtures('soon')


class Pyramid(nn.Module):
  """Two scales at the least cost to compile."""

  num_scales = 2
  stride = 2

  @nn.compact
  def __call__(self, x):
    fine = ops.Conv3D(8, size=1, name='fine')(x)
    return fine, ops.Conv3D(16, size=1, name='coarse')(ops.max_pool(fine))


def bank_config(**changes):
  values = {
    'scales': (0, 1), 'num_experts': 4, 'top_k': 2, 'expansion': 2, 'executor': 'capacity',
    'capacity_factor': 1.0,
  }  # fmt: skip
  return ConfigDict({**values, **changes})


def model(**changes):
  options = sparse_bank.make_options(bank_config(**changes), (0, 1), router_width=8)
  return MoME(Pyramid(), width=16, router_width=8, bank=options)


def example():
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(2, 4, 4, 6, 1))
  return jnp.asarray(image, jnp.float32), jnp.asarray(rng.normal(size=(5, 12)), jnp.float32)


@pytest.fixture(scope='module')
def variables():
  """Random variables of the model, what `init` saves of the text included."""
  image, text = example()
  rng = np.random.default_rng(1)

  def fill(path, leaf):
    if path[0].key == 'trained':
      return text
    noise = rng.normal(size=leaf.shape)
    if path[-1].key == 'scale':
      return jnp.asarray(1 + 0.1 * noise, jnp.float32)
    in_bank = 'bank' in str(path) and leaf.ndim > 1
    fan_in = leaf.shape[-2] if in_bank else max(np.prod(leaf.shape[:-1]), 100)
    return jnp.asarray(noise / np.sqrt(fan_in), jnp.float32)

  shapes = jax.eval_shape(model().init, jax.random.key(0), image, text)
  return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope='module')
def apply():
  return jax.jit(model().apply)


@pytest.fixture(scope='module')
def together(variables, apply):
  return apply(variables, *example())


def assert_close(got, expected):
  np.testing.assert_allclose(got, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_fresh_bank_is_the_identity():
  options = sparse_bank.make_options(bank_config(), (0, 1), router_width=8)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 3, 16)), jnp.float32)
  trained = jnp.ones((5, 16))
  start = jax.jit(functools.partial(sparse_bank.SparseBank(options).init_with_output, train=True))
  (y, report), _ = start(jax.random.key(0, impl='rbg'), x, trained)
  np.testing.assert_array_equal(y, x)
  assert report['experts'].shape == (1, 2, 2, 3, 2)
  assert len(np.unique(report['experts'][..., 0])) > 1  # a zero gate would send all to expert 0


@pytest.mark.parametrize('executor', sparse_bank.EXECUTORS)
def test_a_bank_follows_the_formula(executor):
  """F + the sum over two of four experts of p_i e_i(GroupNorm(F)), voxel by voxel.

  There are 18, filled up to 24, of which the last ones must not count.
  """
  rng = np.random.default_rng(0)
  changes = bank_config(executor=executor, expansion=3)
  bank = sparse_bank.SparseBank(sparse_bank.make_options(changes, (0, 1), router_width=8))
  x = rng.normal(1, 2, size=(2, 1, 3, 3, 16)).astype(np.float32)
  trained = jnp.asarray(rng.normal(size=(5, 12)), jnp.float32)
  apply = functools.partial(bank.apply, train=False)
  shapes = jax.eval_shape(functools.partial(bank.init, train=False), jax.random.key(0), x, trained)
  draw = lambda leaf: (rng.normal(size=leaf.shape) / leaf.shape[-1] ** 0.5).astype(np.float32)
  variables = jax.tree.map(draw, shapes)
  p = variables['params']
  y, report = jax.jit(apply)(variables, x, trained)
  tokens = np.asarray(ops.GroupNorm().apply({'params': p['norm']}, x)).reshape(-1, 16)
  gate = sparse_bank.TokenGate(bank.options)
  logits = gate.apply({'params': p['gate']}, jnp.asarray(tokens), trained)
  expected = x.reshape(-1, 16).copy()
  assert p['kernel_in'].shape == (4, 16, 48)
  for row, (token, shares) in enumerate(zip(tokens, np.array(jax.nn.softmax(logits)), strict=True)):
    best = np.argsort(-shares)[:2]
    np.testing.assert_array_equal(report['experts'].reshape(-1, 2)[row], best)
    for i in best:
      hidden = torch.from_numpy(token @ p['kernel_in'][i] + p['bias_in'][i])
      hidden = torch.nn.functional.gelu(hidden, approximate='tanh').numpy()
      e = hidden @ p['kernel_out'][i] + p['bias_out'][i]
      expected[row] += shares[i] / shares[best].sum() * e
  np.testing.assert_allclose(y.reshape(-1, 16), expected, atol=1e-4)
  squares = np.square(jax.nn.logsumexp(logits, -1))
  np.testing.assert_allclose(report['z'], squares.mean(), rtol=1e-4)


def test_the_gate_follows_the_formula():
  rng = np.random.default_rng(0)
  x, c = rng.normal(size=(6, 16)), rng.normal(size=(5, 12))
  options = sparse_bank.make_options(bank_config(), (0, 1), router_width=8)
  shapes = {'query': (16, 12), 'text': (12, 8), 'kernel': (24, 4)}
  p = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  got = sparse_bank.TokenGate(options).apply({'params': p}, jnp.asarray(x), jnp.asarray(c))
  scores = x @ p['query'] @ c.T / np.sqrt(12)
  attention = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  expected = np.concatenate([x, attention @ c @ p['text']], 1) @ p['kernel']
  np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def test_a_class_does_not_depend_on_the_other_prompts(variables, apply, together):
  """The banks attend to the training classes that `init` saved, or to those given."""
  image, text = example()
  alone, _ = apply(variables, image, text[3:4])
  assert_close(alone[..., 0], together[0][..., 3])
  padded = jnp.concatenate([text, jnp.zeros((3, 12))])
  given, _ = apply({'params': variables['params']}, image, padded, text)
  assert_close(given[..., :5], together[0])


def test_without_the_training_classes_a_prediction_is_refused(variables):
  """Else the banks would attend to the prompts of the request, and a mask depend on the others."""
  image, text = example()
  alone = {'params': variables['params']}
  with pytest.raises(ValueError, match='need the embeddings of the training classes'):
    jax.eval_shape(model().apply, alone, image, text)
  jax.eval_shape(functools.partial(model().apply, train=True), alone, image, text)
  jax.eval_shape(model().apply, alone, image, text, text)


def test_a_sample_does_not_depend_on_the_batch(variables, apply, together):
  image, text = example()
  alone, _ = apply(variables, image[1:], text)
  assert_close(alone[0], together[0][1])
  assert {k: float(v['dropped']) for k, v in together[1]['banks'].items()} == {0: 0, 1: 0}


def test_both_executors_agree(variables, together):
  dense, _ = jax.jit(model(executor='dense').apply)(variables, *example())
  assert_close(dense, together[0])


def test_training_drops_and_every_part_of_a_bank_learns(variables):
  tight = model(capacity_factor=0.5)
  image, text = example()

  def loss(params):
    logits, aux = tight.apply({'params': params}, image, text, train=True)
    return jnp.square(logits - 1).mean(), aux['banks']

  grads, banks = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  assert 0.2 < banks[1]['dropped'] < 0.9
  assert banks[1]['load'].sum() == pytest.approx(1)
  # Half of 48 choices shared by 4 experts are 6, rounded up to 8 rows each.
  assert banks[1]['slots_used'] == pytest.approx((1 - banks[1]['dropped']) * 48 / (4 * 8))
  for path, g in jax.tree_util.tree_leaves_with_path(grads['expert_1']['bank']):
    assert np.abs(g).max() > 0, path


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'scales': (1, 2)}, 'model.bank.scales is'),
    ({'top_k': 5}, 'model.bank.top_k is 5; expected 1 to num_experts=4'),
    ({'executor': 'ragged'}, "model.bank.executor is 'ragged'; known: dense, capacity"),
    ({'capacity_factor': 0.0}, 'model.bank.capacity_factor is 0.0'),
  ],
)
def test_a_wrong_config_says_what_is_known(changes, message):
  with pytest.raises(ValueError, match=message):
    model(**changes)


def test_air_is_what_no_window_shows():
  """Blocks by hand: one voxel above a tenth of either window makes a block of the body."""
  image = np.zeros((1, 4, 4, 4, 2), np.float32)
  image[0, 0, 1, 0, 0] = 0.5  # block (0, 0, 0), first window
  image[0, 2, 2, 3, 1] = 0.2  # block (1, 1, 1), second window
  image[0, 2, 0, 0, 0] = 0.09  # noise in the air of block (1, 0, 0)
  expected = np.zeros((1, 2, 2, 2), bool)
  expected[0, 0, 0, 0] = expected[0, 1, 1, 1] = True
  np.testing.assert_array_equal(mome._body(jnp.asarray(image), 2), expected)
  np.testing.assert_array_equal(mome._body(jnp.asarray(image), 1), image.max(-1) > 0.1)


def test_a_model_tells_its_banks_what_is_air(variables, apply, together):
  image, text = example()
  _, aux = apply(variables, 0 * image, text)
  assert {scale: float(report['balance']) for scale, report in aux['banks'].items()} == {0: 0, 1: 0}
  assert all(report['balance'] > 0.5 for report in together[1]['banks'].values())


def test_the_balance_of_a_bank_leaves_air_out():
  """It is that of the body's tokens alone, and air has no gradient by it."""
  options = sparse_bank.make_options(bank_config(executor='dense'), (0, 1), router_width=8)
  rng = np.random.default_rng(2)
  x = jnp.asarray(rng.normal(size=(1, 2, 2, 4, 16)), jnp.float32)
  trained = jnp.asarray(rng.normal(size=(5, 16)), jnp.float32)
  body = np.zeros((1, 2, 2, 4), bool)
  body[0, 0] = True
  bank = sparse_bank.SparseBank(options)
  variables = bank.init(jax.random.key(0, impl='rbg'), x, trained, train=True)
  variables['params']['gate']['kernel'] *= 50
  _, report = bank.apply(variables, x, trained, jnp.asarray(body), train=True)
  _, whole = bank.apply(variables, x, trained, train=True)

  p = variables['params']
  tokens = ops.GroupNorm().apply({'params': p['norm']}, x).reshape(-1, 16)
  logits = sparse_bank.TokenGate(options).apply({'params': p['gate']}, tokens, trained)
  routes = routing.route(logits, jnp.asarray(body.reshape(-1)), 2)
  expected = losses.balance_loss(routes, jnp.asarray(body.reshape(-1)))
  assert report['balance'] == pytest.approx(float(expected), rel=1e-5)
  assert abs(float(report['balance'] - whole['balance'])) > 1e-3
  assert report['z'] == whole['z']


@pytest.mark.parametrize(('anchor', 'share', 'bias'), [('equal', 0.1, 0), ('finest', 0, np.log(9))])
def test_how_a_mixture_with_an_anchor_starts(anchor, share, bias):
  mixture = MoME(Pyramid(), width=16, router_width=8, anchor=anchor)
  start = jax.jit(mixture.init)(jax.random.key(0, impl='rbg'), *example())['params']
  assert start['mixture_share'] == pytest.approx(share)
  assert start['router']['bias_0'] == pytest.approx(bias)
  assert start['router']['bias_1'] == 0
