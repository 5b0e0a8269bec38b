"""Fusion over scales against the formula, and what top-k must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.models import router
from mome_jax.models.router import Gate

RNG = np.random.default_rng(1)


def pyramid(batch=2, classes=3, size=8, scales=3):
  return [
    jnp.asarray(RNG.normal(size=(batch, classes, *(size >> level,) * 3)), jnp.float32)
    for level in range(scales)
  ]


def resized(maps):
  """Every map at the finest resolution, by jax.image.resize."""
  return np.stack([jax.image.resize(m, maps[0].shape, 'trilinear') for m in maps])


def at_first_voxel(weights):
  return [float(w[0, 0, 0, 0, 0]) for w in weights]


def test_soft_fusion_is_the_softmax_average():
  scores, gates = pyramid(), pyramid()
  fine, logits = resized(scores), resized(gates)
  weights = np.exp(logits) / np.exp(logits).sum(0)
  np.testing.assert_allclose(router.fuse(scores, gates), (weights * fine).sum(0), atol=2e-5)


def test_top_k_of_all_scales_is_soft():
  scores, gates = pyramid(), pyramid()
  np.testing.assert_array_equal(router.fuse(scores, gates, 3), router.fuse(scores, gates))


def test_top_2_drops_the_least_trusted_scale_and_renormalises():
  gates = [jnp.full((1, 1, 2, 2, 2), v) for v in (1.0, 3.0, 2.0)]
  weights = at_first_voxel(router.scale_weights(gates, 2))
  np.testing.assert_allclose(weights, [0, np.e / (np.e + 1), 1 / (np.e + 1)], rtol=1e-6)


def test_top_1_keeps_its_probability_and_the_gradient():
  gates = [jnp.full((1, 1, 2, 2, 2), v) for v in (0.0, 1.0)]
  weights = at_first_voxel(router.scale_weights(gates, 1))
  np.testing.assert_allclose(weights, [0, np.e / (np.e + 1)], rtol=1e-6)
  grad = jax.grad(lambda g: sum(router.scale_weights([gates[0], g], 1)).sum())(gates[1])
  assert (np.abs(grad) > 0.1).all()


@pytest.mark.parametrize(('top_k', 'expected'), [(1, [1 / 3, 0, 0]), (2, [0.5, 0.5, 0])])
def test_ties_go_to_the_finer_scale(top_k, expected):
  gates = [jnp.zeros((1, 1, 2, 2, 2))] * 3
  weights = at_first_voxel(router.scale_weights(gates, top_k))
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize('top_k', [0, 1, 2])
def test_weights_are_finite_for_extreme_gates(top_k):
  gates = [jnp.full((1, 1, 2, 2, 2), v) for v in (-1e4, 1e4, 0.0)]
  weights = router.scale_weights(gates, top_k)
  np.testing.assert_allclose(weights[1], 1.0)
  assert np.isfinite(
    jax.grad(lambda g: router.fuse(gates, [g, *gates[1:]], top_k).sum())(gates[0])
  ).all()


def test_pyramids_must_match():
  scores, gates = pyramid(), pyramid(classes=2)
  with pytest.raises(ValueError, match='differ in shape'):
    router.fuse(scores, gates)


def make_gates(features, classes, context, inputs='text+vision', **values):
  """The router with its parameters at the start, or those given; and what it returns."""
  module = router.Router(4, inputs)
  params = module.init(jax.random.key(0), features, classes, context).get('params', {})
  params |= values
  return params, module.apply({'params': params}, features, classes, context)


def test_a_fresh_router_gives_the_finest_scale_nine_tenths():
  features = [jnp.zeros((1, 4 >> level, 4 >> level, 4 >> level, 8)) for level in range(3)]
  _, gates = make_gates(features, jnp.ones((2, 16)), jnp.ones((1, 16)))
  logits = [Gate(g.weight[:, 0], g.bias[:, 0])(x) for g, x in zip(gates, features, strict=True)]
  np.testing.assert_allclose(router.scale_weights(logits)[0], 0.9, rtol=1e-5)


def test_a_gate_is_the_product_of_query_and_normalised_key():
  shapes = (2, 4, 4, 2, 32), (2, 2, 2, 1, 32)
  features = [jnp.asarray(RNG.normal(1, 2, shape), jnp.float32) for shape in shapes]
  classes, context = (jnp.asarray(RNG.normal(size=(n, 16)), jnp.float32) for n in (3, 2))
  prior = jnp.asarray(RNG.normal(size=16), jnp.float32)
  norm = {'scale': jnp.linspace(0.5, 2, 32), 'bias': jnp.linspace(-1, 1, 32)}
  params, (gate, _) = make_gates(features, classes, context, prior_0=prior, norm_0=norm)
  normalised = torch.nn.functional.group_norm(
    torch.from_numpy(np.moveaxis(np.array(features[0]), -1, 1).copy()),
    16,
    *(torch.from_numpy(np.array(norm[name])) for name in ('scale', 'bias')),
  )
  keys = np.einsum('bcdhw,cr->bdhwr', normalised, params['key_0'])
  for k in range(3):
    pairs = jnp.concatenate([jnp.broadcast_to(classes[k], (2, 16)), context], -1)
    query = pairs @ params['query']['kernel'] + params['query']['bias']
    expected = np.einsum('br,bdhwr->bdhw', query, keys) / 2 + classes[k] @ prior + params['bias_0']
    got = Gate(gate.weight[:, k], gate.bias[:, k])(features[0])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('inputs', 'by_class', 'by_voxel'),
  [
    ('text+vision', True, True),
    ('text', True, False),
    ('vision', False, True),
    ('uniform', False, False),
  ],
)
def test_what_the_weights_depend_on(inputs, by_class, by_voxel):
  features = [jnp.asarray(RNG.normal(size=(1, n, n, n, 8)), jnp.float32) for n in (4, 2)]
  classes = jnp.asarray(RNG.normal(size=(2, 16)), jnp.float32)
  context = jnp.ones((1, 16))
  params, _ = make_gates(features, classes, context, inputs)
  given = {name: jnp.ones(16) for name in params if name == 'prior_0'}
  params, gates = make_gates(features, classes, context, inputs, **given)
  logits = [Gate(gates[0].weight[:, k], gates[0].bias[:, k])(features[0]) for k in range(2)]
  assert (np.abs(logits[0] - logits[1]).max() > 1e-3) == by_class
  assert (np.ptp(logits[0]) > 1e-3) == by_voxel
  assert bool(params) == (inputs != 'uniform')


def test_mixed_features_are_the_weighted_average():
  features = pyramid(batch=2, classes=8)
  weights = router.scale_weights([g[:, 0] for g in pyramid(batch=2, classes=1)])
  expected = sum(w[:, None] * f for w, f in zip(weights, resized(features), strict=True))
  np.testing.assert_allclose(router.mix(features, weights), expected, atol=1e-5)


@pytest.mark.parametrize('top_k', [0, 1, 2])
def test_the_gradient_of_fusion_is_that_of_the_formula(top_k):
  scores, gates = pyramid(batch=1, classes=2), pyramid(batch=1, classes=2)

  def formula(scores, gates):
    weights = router.scale_weights(gates, top_k)
    fine = [jax.image.resize(s, scores[0].shape, 'trilinear') for s in scores]
    return sum(w * s for w, s in zip(weights, fine, strict=True))

  gradients = [
    jax.jit(jax.grad(lambda s, g, f=f: jnp.sin(f(s, g)).sum(), argnums=(0, 1)))(scores, gates)
    for f in (formula, lambda s, g: router.fuse(s, g, top_k))
  ]
  for expected, got in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(got, expected, atol=1e-5 * float(jnp.abs(expected).max()))
