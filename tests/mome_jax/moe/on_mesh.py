"""The executors on every mesh of eight devices; run by test_on_mesh.py in a process of its own."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mome_jax.moe import capacity, dense, losses, routing

N, D, H, E, K = 128, 8, 16, 8, 2
MESHES = [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8)]


def experts(params, rows):
  hidden = jax.nn.gelu(jnp.einsum('ecd,edh->ech', rows, params['in']) + params['bias'][:, None])
  return jnp.einsum('ech,ehd->ecd', hidden, params['out'])


def problem():
  """Tokens, 30 % of them masked and full of NaN; expert 0 is crowded, nobody goes to expert 5."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(N, E))
  logits[:, 0] += 2
  logits[:, 5] = -1e9
  valid = rng.random(N) > 0.3
  tokens = rng.normal(size=(N, D))
  tokens[~valid] = np.nan
  params = {
    'in': rng.normal(size=(E, D, H)) / np.sqrt(D),
    'bias': rng.normal(size=(E, H)),
    'out': rng.normal(size=(E, H, D)) / np.sqrt(H),
  }
  arrays = params, tokens, logits, rng.normal(size=(N, D))
  return *jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays), jnp.asarray(valid)


def mesh_of(shape):
  devices = jax.devices()[: shape[0] * shape[1]]
  return jax.make_mesh(shape, ('data', 'expert'), devices=devices, axis_types=(AxisType.Auto,) * 2)


def run(executor):
  """Output, served choices, balance loss and all gradients of one executor, jitted once."""

  def loss(params, tokens, logits, towards, valid):
    gates = routing.route(logits, valid, K)
    output, served = executor(experts, params, tokens, gates, valid)
    balance = losses.balance_loss(gates, valid)
    return (output * towards).sum() + balance, (output, served, balance)

  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
  (_, (output, served, balance)), grads = step(*problem())
  got = {'output': output, 'balance': balance, 'params': grads[0], 'tokens': grads[1]}
  return jax.device_get({**got, 'logits': grads[2]}), np.asarray(served)


@functools.cache
def reference():
  """The dense executor without a mesh."""
  return run(lambda f, p, x, g, v: (dense.execute(f, p, x, g, v), v[:, None] & (g.experts >= 0)))[0]


def with_room(room, **options):
  return functools.partial(capacity.execute, capacity=room, **options)


def assert_close(got, expected, rtol=1e-5):
  def one(path, a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, atol=rtol * scale + 1e-30, err_msg=str(path))

  jax.tree_util.tree_map_with_path(one, got, expected)


def test_dense_is_the_sum_over_a_loop():
  params, tokens, logits, _, valid = problem()
  gates = routing.route(logits, valid, K)
  expected = np.zeros((N, D))
  for v in np.flatnonzero(valid):
    for weight, e in zip(gates.weights[v], gates.experts[v], strict=True):
      one = jax.tree.map(lambda p, e=e: p[e : e + 1], params)
      expected[v] += float(weight) * np.asarray(experts(one, tokens[v][None, None])[0, 0])
  assert_close(reference()['output'], expected)
  np.testing.assert_array_equal(reference()['output'][~np.asarray(valid)], 0)


@pytest.mark.parametrize('shape', [None, *MESHES])
def test_capacity_of_n_equals_dense(shape):
  """Forward, every gradient, and the global balance loss, on every mesh and on none."""
  room = N if shape is None else N // (shape[0] * shape[1])
  if shape is None:
    got, served = run(with_room(room))
  else:
    with jax.set_mesh(mesh_of(shape)):
      got, served = run(with_room(room))
  assert_close(got, reference())
  valid = np.asarray(problem()[-1])
  np.testing.assert_array_equal(served, np.repeat(valid[:, None], K, 1))
  for leaf in jax.tree.leaves(got['params']):
    np.testing.assert_array_equal(leaf[5], 0)  # the expert that nobody chose
  np.testing.assert_array_equal(got['tokens'][~valid], 0)
  np.testing.assert_array_equal(got['logits'][~valid], 0)


@pytest.mark.parametrize('shape', [(1, 1), (2, 4)])
def test_dense_on_a_mesh(shape):
  with jax.set_mesh(mesh_of(shape)):
    got, _ = run(lambda f, p, x, g, v: (dense.execute(f, p, x, g, v), v))
  assert_close(got, reference())


@pytest.mark.parametrize('shape', [(4, 2), (1, 8)])
def test_with_drops_the_rest_is_exact(shape):
  """Served choices alone make the output; dropped ones give no gradient and no NaN."""
  with jax.set_mesh(mesh_of(shape)):
    got, served = run(with_room(3))
  valid = np.asarray(problem()[-1])
  assert 0.1 < 1 - served.sum() / (K * valid.sum()) < 0.6

  def masked(f, p, x, g, v):
    g = g.replace(experts=jnp.where(served, g.experts, E))
    return dense.execute(f, p, x, g, v), v

  assert_close(got, run(masked)[0])


def test_no_room_at_all_gives_zeros():
  with jax.set_mesh(mesh_of((2, 4))):
    got, served = run(with_room(0))
  assert not served.any()
  for leaf in jax.tree.leaves([got['output'], got['params'], got['tokens'], got['logits'][:, 6]]):
    assert np.isfinite(leaf).all()
  for leaf in jax.tree.leaves([got['output'], got['params'], got['tokens']]):
    np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize('shape', [None, (8, 1), (2, 4), (1, 8)])
def test_drop_free_rounds_equal_dense(shape):
  params, tokens, logits, _, valid = problem()

  @jax.jit
  def forward(params, tokens, logits, valid):
    gates = routing.route(logits, valid, K)
    return capacity.execute(
      experts, params, tokens, gates, valid, capacity=2, drop_free=True, by_confidence=True
    )

  if shape is None:
    output, served = forward(params, tokens, logits, valid)
  else:
    with jax.set_mesh(mesh_of(shape)):
      output, served = forward(params, tokens, logits, valid)
  assert_close(np.asarray(output), reference()['output'])
  assert (served == valid[:, None]).all()


def test_permuted_tokens_give_permuted_outputs():
  params, tokens, logits, _, valid = problem()
  order = np.random.default_rng(1).permutation(N)

  @jax.jit
  def forward(tokens, logits, valid):
    gates = routing.route(logits, valid, K)
    return capacity.execute(experts, params, tokens, gates, valid, capacity=N // 8)[0]

  with jax.set_mesh(mesh_of((2, 4))):
    output, permuted = (
      np.asarray(forward(*(x[i] for x in (tokens, logits, valid)))) for i in (slice(None), order)
    )
  assert_close(permuted, output[order])


def test_a_nan_in_a_dropped_token_stays_there():
  params, tokens, logits, towards, valid = problem()
  with jax.set_mesh(mesh_of((2, 4))):
    _, served = run(with_room(3))
    lost = np.flatnonzero(np.asarray(valid) & ~served.any(1))[0]

    def loss(params, tokens):
      gates = routing.route(logits, valid, K)
      output, _ = capacity.execute(experts, params, tokens, gates, valid, capacity=3)
      return (output * towards).sum(), output

    grads, output = jax.jit(jax.grad(loss, has_aux=True))(params, tokens.at[lost].set(jnp.nan))
  for leaf in jax.tree.leaves((grads, output)):
    assert np.isfinite(leaf).all()


def test_bfloat16_with_frozen_routing_is_close():
  params, tokens, logits, _, valid = problem()

  @jax.jit
  def forward(params, tokens):
    gates = routing.route(logits, valid, K)
    return capacity.execute(experts, params, tokens, gates, valid, capacity=N // 8)[0]

  with jax.set_mesh(mesh_of((2, 4))):
    rough = forward(*jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, tokens)))
  assert rough.dtype == jnp.bfloat16
  exact = reference()['output']
  error = np.linalg.norm(np.asarray(rough, np.float32) - exact) / np.linalg.norm(exact)
  assert 0 < error < 2e-2


def test_two_exchanges_and_no_gather_in_the_program():
  params, tokens, logits, _, valid = problem()
  mesh = mesh_of((2, 4))

  def forward(params, tokens, kernel, valid):
    gates = routing.route(tokens @ kernel, valid, K)
    output, _ = capacity.execute(experts, params, tokens, gates, valid, capacity=8)
    return output, losses.balance_loss(gates, valid)

  with jax.set_mesh(mesh):
    P = jax.sharding.PartitionSpec
    place = lambda spec: jax.sharding.NamedSharding(mesh, spec)
    rows = place(P(('data', 'expert')))
    where = (place(P('expert')), rows, place(P()), rows)
    text = (
      jax.jit(forward, in_shardings=where, out_shardings=(rows, place(P())))
      .lower(params, tokens, jnp.ones((D, E)), valid)
      .compile()
      .as_text()
    )
  kinds = re.findall(r' (all-to-all|all-gather|collective-permute|all-reduce)\(', text)
  assert kinds.count('all-to-all') == 2, kinds
  assert 'all-gather' not in kinds
  assert 'collective-permute' not in kinds


@pytest.mark.parametrize(
  ('tokens', 'experts', 'message'),
  [(12, 8, '12 tokens cannot be shared by 8 devices'), (16, 6, '6 experts cannot be shared')],
)
def test_what_the_mesh_cannot_divide_is_refused(tokens, experts, message):
  valid = jnp.ones(tokens, bool)
  gates = routing.route(jnp.zeros((tokens, experts)), valid, 2)
  with jax.set_mesh(mesh_of((2, 4))), pytest.raises(ValueError, match=message):
    capacity.execute(lambda p, x: x, {}, jnp.zeros((tokens, 4)), gates, valid, capacity=8)
