"""The routing plan against tables worked out by hand, and its properties."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax.moe import routing

# Three tokens, three experts, two choices each. First choices in token order: A->0, B->0, C->2;
# then second choices: A->1, B->1, C->0.
TABLE = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.3, 0.1, 0.6]]))
ALL = jnp.ones(3, bool)


def test_routes_of_the_table():
  routes = routing.route(TABLE, ALL, 2)
  np.testing.assert_array_equal(routes.experts, [[0, 1], [0, 1], [2, 0]])
  expected = [[0.6 / 0.9, 0.3 / 0.9], [0.5 / 0.9, 0.4 / 0.9], [0.6 / 0.9, 0.3 / 0.9]]
  np.testing.assert_allclose(routes.weights, expected, rtol=1e-6)


def test_plan_of_the_table_serves_first_choices_first():
  routes = routing.route(TABLE, ALL, 2)
  plan = routing.make_plan(routes.experts, 3, capacity=2)
  np.testing.assert_array_equal(plan.counts, [3, 2, 1])
  np.testing.assert_array_equal(plan.rank, [[0, 0], [1, 1], [0, 2]])
  np.testing.assert_array_equal(plan.keep, [[1, 1], [1, 1], [1, 0]])  # C's second choice is late
  np.testing.assert_array_equal(plan.slot, [[0, 2], [1, 3], [4, 6]])
  np.testing.assert_array_equal(plan.source, [0, 1, 0, 1, 2, 3])  # 3: an empty slot


def test_a_choice_of_none_takes_no_slot():
  plan = routing.make_plan(jnp.array([[3, 3], [0, 1], [2, 0]]), 3, capacity=2)
  np.testing.assert_array_equal(plan.counts, [2, 1, 1])
  assert not plan.keep[0].any()
  np.testing.assert_array_equal(plan.source, [1, 2, 1, 3, 2, 3])


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_every_plan_is_consistent(data):
  n, k, experts, room = 6, 2, 4, data.draw(st.integers(0, 6))
  choice = st.permutations(range(experts)).map(lambda p: p[:k])
  rows = data.draw(st.lists(st.one_of(choice, st.just([experts] * k)), min_size=n, max_size=n))
  plan = jax.tree.map(np.asarray, routing.make_plan(jnp.array(rows), experts, room))
  rows = np.array(rows)
  assert plan.counts.sum() == (rows < experts).sum()
  for e in range(experts):
    choices = rows == e
    assert sorted(plan.rank[choices]) == list(range(plan.counts[e]))
    assert plan.keep[choices].sum() == min(plan.counts[e], room)
  slots = plan.slot[plan.keep]
  assert len(set(slots)) == len(slots)
  tokens = np.broadcast_to(np.arange(n)[:, None], rows.shape)
  np.testing.assert_array_equal(plan.source[slots], tokens[plan.keep])
  assert (plan.source < n).sum() == len(slots)


def test_all_experts_are_the_softmax_mixture():
  routes = routing.route(TABLE, ALL, 3)
  mixture = jnp.zeros((3, 3)).at[jnp.arange(3)[:, None], routes.experts].set(routes.weights)
  np.testing.assert_allclose(mixture, jax.nn.softmax(TABLE), rtol=1e-6)


@pytest.mark.parametrize('top_k', [1, 2])
def test_the_router_has_a_gradient(top_k):
  grad = jax.grad(lambda x: routing.route(x, ALL, top_k).weights[:, 0].sum())(TABLE)
  assert (np.abs(grad).max(1) > 0.05).all()


def test_what_an_invalid_token_holds_reaches_nothing():
  valid = jnp.array([True, False, True])
  bad = TABLE.at[1].set(jnp.nan)
  loss = lambda x: (routing.route(x, valid, 2).weights * jnp.array([[1.0, 2.0]])).sum()
  grad = jax.grad(loss)(bad)
  np.testing.assert_array_equal(grad[1], 0)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ('factor', 'expected'), [(1.0, 32), (1.3, 40), (2.0, 56), (4.0, 100), (0.0, 0)]
)
def test_capacity_is_a_multiple_of_eight_below_n(factor, expected):
  assert routing.capacity(100, num_experts=8, top_k=2, factor=factor) == expected
