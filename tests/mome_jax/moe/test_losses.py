"""Auxiliary losses and statistics on numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax.moe import losses, router_stats, routing

pytestmark = pytest.mark.usefixtures('soon')

N, E, K = 16, 8, 2
ALL = jnp.ones(N, bool)


def collapsed():
  return jnp.tile(jnp.array([40.0, 40.0] + [0.0] * (E - 2)), (N, 1))


def balanced():
  """Token i chooses experts i and i + 1, each with half of its probability."""
  i = jnp.arange(N)[:, None]
  e = jnp.arange(E)[None]
  return jnp.where((e == i % E) | (e == (i + 1) % E), 40.0, 0.0)


@pytest.mark.parametrize(('logits', 'expected'), [(balanced(), 1.0), (collapsed(), E / K)])
def test_balance_is_one_or_the_collapse(logits, expected):
  routes = routing.route(logits, ALL, K)
  assert losses.balance_loss(routes, ALL) == pytest.approx(expected, rel=1e-5)


def test_balance_by_hand():
  # f = (3, 1) / 4 by the argmax; P = (0.6 + 0.7 + 0.8 + 0.1, ...) / 4 = (0.55, 0.45).
  p = jnp.array([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]])
  routes = routing.route(jnp.log(p), jnp.ones(4, bool), 1)
  expected = 2 * (0.75 * 0.55 + 0.25 * 0.45)
  assert losses.balance_loss(routes, jnp.ones(4, bool)) == pytest.approx(expected, rel=1e-5)


def test_balance_pushes_the_crowded_expert_down():
  logits = jnp.zeros((N, E)).at[:, 0].set(1.0)
  grad = jax.grad(lambda x: losses.balance_loss(routing.route(x, ALL, K), ALL))(logits)
  assert (grad[:, 0] > 0).all()
  assert (grad[:, 2:] < 0).all()


def test_z_loss_by_hand():
  routes = routing.route(jnp.full((N, E), 3.0), ALL, K)
  assert losses.z_loss(routes, ALL) == pytest.approx((3 + np.log(E)) ** 2, rel=1e-5)


def test_only_valid_tokens_count():
  logits = jax.random.normal(jax.random.key(0), (N, E))
  valid = jnp.arange(N) < 10
  some = routing.route(logits, valid, K)
  few = routing.route(logits[:10], valid[:10], K)
  for f in (losses.balance_loss, losses.z_loss, losses.load):
    np.testing.assert_allclose(f(some, valid), f(few, valid[:10]), rtol=1e-5)
  served = jnp.ones((N, K), bool)
  one, other = (
    router_stats.summarize(some, valid, served),
    router_stats.summarize(few, valid[:10], served[:10]),
  )
  for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_statistics_tell_collapse_from_specialisation():
  served = jnp.ones((N, K), bool)
  collapse = router_stats.summarize(routing.route(collapsed(), ALL, K), ALL, served)
  special = router_stats.summarize(routing.route(balanced(), ALL, K), ALL, served)
  one_of_two = np.log(2) / np.log(E)
  np.testing.assert_allclose(collapse['entropy'], one_of_two, rtol=1e-5)
  np.testing.assert_allclose(collapse['entropy_of_mean'], one_of_two, rtol=1e-5)
  np.testing.assert_allclose(special['entropy'], one_of_two, rtol=1e-5)
  np.testing.assert_allclose(special['entropy_of_mean'], 1, rtol=1e-5)
  assert collapse['load_max_over_mean'] == pytest.approx(E / K)
  assert special['load_max_over_mean'] == pytest.approx(1)
  assert collapse['load'].sum() == pytest.approx(1)
  assert collapse['confidence'] == pytest.approx(0.5)


def test_statistics_of_drops():
  served = jnp.ones((N, K), bool).at[:4, 1].set(False).at[0].set(False)
  got = router_stats.summarize(routing.route(balanced(), ALL, K), ALL, served, slots=64)
  assert got['dropped'] == pytest.approx(5 / 32)
  assert got['dropped_first'] == pytest.approx(1 / 16)
  assert got['no_expert'] == pytest.approx(1 / 16)
  assert got['slots_used'] == pytest.approx(27 / 64)


def test_the_expert_by_organ_matrix():
  experts = jnp.array([[0, 1], [2, 1]])
  targets = jnp.array([[1.0, 0.0], [0.5, 1.0]])  # the second token is half class 0, all class 1
  matrix = router_stats.by_class(experts, 3, targets)
  np.testing.assert_allclose(matrix, [[1, 0], [1.5, 1], [0.5, 1]])


def test_the_matrix_is_summed_in_float32_on_any_device():
  """A TPU would take shares for bfloat16 by default: 257 of 512 voxels for 256."""
  shapes = jnp.zeros((5, 2), jnp.int32), jnp.zeros((5, 4))
  program = jax.make_jaxpr(lambda experts, targets: router_stats.by_class(experts, 3, targets))
  [product] = [one for one in program(*shapes).eqns if one.primitive.name == 'dot_general']
  assert product.params['precision'] == (jax.lax.Precision.HIGHEST,) * 2


def test_gradient_norm_of_each_expert():
  tree = {'a': jnp.array([[3.0, 0], [0, 0]]), 'b': jnp.array([[4.0], [2.0]])}
  np.testing.assert_allclose(router_stats.gradient_norms(tree), [5, 2])
