"""The executors on every mesh of eight devices; run by test_on_mesh.py in a process of its own."""

import contextlib
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
on_every_mesh = pytest.mark.parametrize('shape', MESHES)
on_every_mesh_and_none = pytest.mark.parametrize('shape', [None, *MESHES])


def experts(params, rows):
  hidden = jax.nn.gelu(jnp.einsum('ecd,edh->ech', rows, params['in']) + params['bias'][:, None])
  return jnp.einsum('ech,ehd->ecd', hidden, params['out'])


@functools.cache
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
  return *jax.tree.map(lambda x: np.asarray(x, np.float32), arrays), valid


VALID = problem()[-1]


def devices_of(shape):
  return 1 if shape is None else shape[0] * shape[1]


def mesh_of(shape):
  devices = jax.devices()[: devices_of(shape)]
  return jax.make_mesh(shape, ('data', 'expert'), devices=devices, axis_types=(AxisType.Auto,) * 2)


def on(shape):
  """The mesh in effect; None is none."""
  return contextlib.nullcontext() if shape is None else jax.set_mesh(mesh_of(shape))


@functools.cache
def _program(shape, room, top_k):

  def loss(params, tokens, logits, towards, valid, allowed, auxiliary):
    routes = routing.route(logits, valid, top_k)
    if room is None:
      granted = routes.replace(experts=jnp.where(allowed, routes.experts, E))
      output, served = dense.execute(experts, params, tokens, granted, valid), allowed
    else:
      output, served = capacity.execute(experts, params, tokens, routes, valid, capacity=room)
    balance, z = losses.balance_loss(routes, valid), losses.z_loss(routes, valid)
    total = (output * towards).sum() + auxiliary * (balance + z)
    return total, {'output': output, 'balance': balance, 'z': z, 'served': served}

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def run(shape, room, *, top_k=K, allowed=True, auxiliary=1.0, arrays=None):
  """Output, auxiliary losses and all gradients, and which choices were served.

  Args:
    shape: of the mesh, or None.
    room: C of the executor `capacity`; None runs `dense`.
    top_k: k.
    allowed: (N, k) bool, for `dense`: the choices to serve.
    auxiliary: weight of balance and z loss in what is differentiated.
    arrays: those of `problem`, or others of the same shapes.
  """
  allowed = np.broadcast_to(allowed, (N, top_k))
  with on(shape):
    step = _program(shape, room, top_k)
    (_, got), grads = step(*(arrays or problem()), allowed, np.float32(auxiliary))
    got |= dict(zip(('params', 'tokens', 'logits'), grads, strict=True))
    served = got.pop('served')
    return jax.device_get(got), np.asarray(served)


@functools.cache
def reference(top_k=K, auxiliary=1.0):
  """The dense executor without a mesh."""
  return run(None, None, top_k=top_k, auxiliary=auxiliary)[0]


def chosen(top_k=K):
  logits, valid = problem()[2], problem()[-1]
  return jax.device_get(routing.route(jnp.asarray(logits), jnp.asarray(valid), top_k))


def served_by_hand(shape, room):
  """Device by device, first choices before second ones, each expert takes `room`."""
  routes = chosen()
  served = np.zeros((N, K), bool)
  for local in np.split(np.arange(N), devices_of(shape)):
    queue = np.zeros(E, int)
    for choice in range(K):
      for token in local[VALID[local]]:
        expert = routes.experts[token, choice]
        served[token, choice] = queue[expert] < room
        queue[expert] += 1
  return served


def assert_close(got, expected, rtol=1e-5):
  def one(path, a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, atol=rtol * scale + 1e-30, err_msg=str(path))

  jax.tree_util.tree_map_with_path(one, got, expected)


def test_dense_is_the_sum_over_a_loop():
  params, tokens = problem()[:2]
  routes = chosen()
  expected = np.zeros((N, D))
  for v in np.flatnonzero(VALID):
    for weight, e in zip(routes.weights[v], routes.experts[v], strict=True):
      one = jax.tree.map(lambda p, e=e: p[e : e + 1], params)
      expected[v] += float(weight) * np.asarray(experts(one, tokens[v][None, None])[0, 0])
  assert_close(reference()['output'], expected)
  np.testing.assert_array_equal(reference()['output'][~VALID], 0)


@on_every_mesh_and_none
def test_capacity_of_n_equals_dense(shape):
  """Forward, every gradient, and the global auxiliary losses."""
  got, served = run(shape, N // devices_of(shape))
  assert_close(got, reference())
  np.testing.assert_array_equal(served, np.repeat(VALID[:, None], K, 1))
  for leaf in jax.tree.leaves(got['params']):
    np.testing.assert_array_equal(leaf[5], 0)  # the expert that nobody chose
  np.testing.assert_array_equal(got['tokens'][~VALID], 0)
  np.testing.assert_array_equal(got['logits'][~VALID], 0)


@on_every_mesh
def test_permuted_tokens_give_permuted_outputs(shape):
  order = np.random.default_rng(1).permutation(N)
  params, *rows = problem()
  got, _ = run(shape, N // devices_of(shape), arrays=(params, *(x[order] for x in rows)))
  expected = reference()
  permuted = {k: expected[k][order] for k in ('output', 'tokens', 'logits')}
  assert_close(got, {**expected, **permuted})


@pytest.mark.parametrize('shape', [(1, 1), (2, 4)])
def test_dense_on_a_mesh(shape):
  assert_close(run(shape, None)[0], reference())


@on_every_mesh
def test_with_drops_the_rest_is_exact(shape):
  """Late choices are dropped; the served ones alone make output and gradients.

  And what a token holds of which no choice was served, NaN say, reaches nothing.
  """
  room = 16 // devices_of(shape)
  got, served = run(shape, room)
  np.testing.assert_array_equal(served, served_by_hand(shape, room))
  assert 0.1 < 1 - served.sum() / (K * VALID.sum()) < 0.7
  assert_close(got, run(None, None, allowed=served)[0])

  lost = np.flatnonzero(VALID & ~served.any(1))[0]
  params, tokens, *others = problem()
  tokens = tokens.copy()
  tokens[lost] = np.nan
  spoilt, _ = run(shape, room, arrays=(params, tokens, *others))
  assert_close(spoilt, got)


@on_every_mesh
def test_no_room_at_all_gives_zeros(shape):
  got, served = run(shape, 0, auxiliary=0.0)
  assert not served.any()
  for leaf in jax.tree.leaves([got[k] for k in ('output', 'params', 'tokens', 'logits')]):
    np.testing.assert_array_equal(leaf, 0)


@on_every_mesh
def test_all_experts_are_the_softmax_mixture(shape):
  """k = E and C = n: the plain mixture of all experts, gradients included."""
  got, _ = run(shape, N // devices_of(shape), top_k=E, auxiliary=0.0)

  def mixture(params, tokens, logits):
    weights = jax.nn.softmax(jnp.where(VALID[:, None], logits, 0))
    rows = jnp.where(VALID[:, None], tokens, 0)
    y = experts(params, jnp.broadcast_to(rows, (E, N, D)))
    output = jnp.where(VALID[:, None], jnp.einsum('ne,end->nd', weights, y), 0)
    return (output * problem()[3]).sum(), output

  grads, output = jax.jit(jax.grad(mixture, (0, 1, 2), has_aux=True))(*problem()[:3])
  names = ('params', 'tokens', 'logits', 'output')
  expected = jax.device_get(dict(zip(names, (*grads, output), strict=True)))
  assert_close({k: got[k] for k in expected}, expected)


@on_every_mesh
def test_with_one_expert_a_token_the_router_learns(shape):
  got, _ = run(shape, N // devices_of(shape), top_k=1, auxiliary=0.0)
  assert_close(got, reference(1, 0.0))
  assert (np.abs(got['logits'][VALID]).max(1) > 1e-6).all()


@on_every_mesh_and_none
def test_drop_free_rounds_equal_dense(shape):
  params, tokens, logits, _, valid = problem()

  @jax.jit
  def forward(params, tokens, logits, valid):
    routes = routing.route(logits, valid, K)
    return capacity.execute(experts, params, tokens, routes, valid, capacity=2, drop_free=True)

  with on(shape):
    output, served = forward(params, tokens, logits, valid)
  assert_close(np.asarray(output), reference()['output'])
  assert (np.asarray(served) == valid[:, None]).all()


@on_every_mesh
def test_bfloat16_with_frozen_routing_is_close(shape):
  params, tokens, logits, _, valid = problem()

  @jax.jit
  def forward(params, tokens, logits, valid):
    routes = routing.route(logits, valid, K)
    room = N // devices_of(shape)
    return capacity.execute(experts, params, tokens, routes, valid, capacity=room)[0]

  with on(shape):
    rough = forward(
      *jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, tokens)), logits, valid
    )
  assert rough.dtype == jnp.bfloat16
  exact = reference()['output']
  error = np.linalg.norm(np.asarray(rough, np.float32) - exact) / np.linalg.norm(exact)
  assert 0 < error < 2e-2


@pytest.mark.parametrize('shape', [shape for shape in MESHES if shape[1] > 1])
def test_two_exchanges_and_no_gather_in_the_program(shape):
  params, tokens, _, _, valid = problem()
  mesh = mesh_of(shape)

  def forward(params, tokens, kernel, valid):
    routes = routing.route(tokens @ kernel, valid, K)
    output, _ = capacity.execute(experts, params, tokens, routes, valid, capacity=8)
    return output, losses.balance_loss(routes, valid)

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
  routes = routing.route(jnp.zeros((tokens, experts)), valid, 2)
  with jax.set_mesh(mesh_of((2, 4))), pytest.raises(ValueError, match=message):
    capacity.execute(lambda p, x: x, {}, jnp.zeros((tokens, 4)), routes, valid, capacity=8)


def plan_of(room, dropped=0.3):
  """A plan with empty slots, full experts and choices of none."""
  rng = np.random.default_rng(3)
  choices = np.argsort(rng.normal(size=(N, E)) - 2 * (np.arange(E) == 0), 1)[:, :K]
  choices[rng.random(N) < dropped] = E
  return routing.make_plan(jnp.asarray(choices, jnp.int32), E, room)


@pytest.mark.parametrize('room', [8, 24, N])
def test_slots_and_sums_have_the_gradients_that_xla_makes(room):
  rng = np.random.default_rng(4)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  plan, tokens, y, weights = plan_of(room), normal(N, D), normal(E * room, D), normal(N, K)
  for fast, plain, inputs in (
    (capacity.fill_slots, capacity.fill_slots_plain, (tokens,)),
    (capacity.combine, capacity.combine_plain, (y, weights)),
  ):
    rows, pull = jax.vjp(lambda *x, f=fast: f(*x, plan), *inputs)
    expected, pull_plain = jax.vjp(lambda *x, f=plain: f(*x, plan), *inputs)
    np.testing.assert_array_equal(rows, expected)
    towards = normal(*rows.shape)
    for ours, theirs in zip(pull(towards), pull_plain(towards), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_no_row_is_scattered_in_the_gradient():
  """Scatters of ints make the plan; one of rows adds to memory row by row."""

  def scattered_widths(fill, mix):
    plan = plan_of(24)

    def loss(tokens, weights):
      return jnp.sin(mix(fill(tokens, plan) ** 2, weights, plan)).sum()

    grad = jax.grad(loss, argnums=(0, 1))
    hlo = jax.jit(grad).lower(np.ones((N, D), np.float32), np.ones((N, K), np.float32)).as_text()
    updates = re.findall(r'"stablehlo.scatter".*?-> tensor<(\d+)x(\d+)xf32>', hlo, re.DOTALL)
    return {int(width) for _, width in updates}

  assert scattered_widths(capacity.fill_slots, capacity.combine) == set()
  plain = scattered_widths(capacity.fill_slots_plain, capacity.combine_plain)
  assert D in plain  # the test sees them where they are
