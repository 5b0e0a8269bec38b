"""Fusion over scales against the formula, and what top-k must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax.ops import fusion

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
  scores, logits = pyramid(), pyramid()
  fine, odds = resized(scores), np.exp(resized(logits))
  weights = odds / odds.sum(0)
  np.testing.assert_allclose(fusion.fuse(scores, logits), (weights * fine).sum(0), atol=2e-5)


def test_top_k_of_all_scales_is_soft():
  scores, logits = pyramid(), pyramid()
  np.testing.assert_array_equal(fusion.fuse(scores, logits, 3), fusion.fuse(scores, logits))


def test_top_2_drops_the_least_trusted_scale_and_renormalises():
  logits = [jnp.full((1, 1, 2, 2, 2), v) for v in (1.0, 3.0, 2.0)]
  weights = at_first_voxel(fusion.scale_weights(logits, 2))
  np.testing.assert_allclose(weights, [0, np.e / (np.e + 1), 1 / (np.e + 1)], rtol=1e-6)


def test_top_1_keeps_its_probability_and_the_gradient():
  logits = [jnp.full((1, 1, 2, 2, 2), v) for v in (0.0, 1.0)]
  weights = at_first_voxel(fusion.scale_weights(logits, 1))
  np.testing.assert_allclose(weights, [0, np.e / (np.e + 1)], rtol=1e-6)
  grad = jax.grad(lambda g: sum(fusion.scale_weights([logits[0], g], 1)).sum())(logits[1])
  assert (np.abs(grad) > 0.1).all()


@pytest.mark.parametrize(('top_k', 'expected'), [(1, [1 / 3, 0, 0]), (2, [0.5, 0.5, 0])])
def test_ties_go_to_the_finer_scale(top_k, expected):
  logits = [jnp.zeros((1, 1, 2, 2, 2))] * 3
  weights = at_first_voxel(fusion.scale_weights(logits, top_k))
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize('top_k', [0, 1, 2])
def test_weights_are_finite_for_extreme_gates(top_k):
  logits = [jnp.full((1, 1, 2, 2, 2), v) for v in (-1e4, 1e4, 0.0)]
  weights = fusion.scale_weights(logits, top_k)
  np.testing.assert_allclose(weights[1], 1.0)
  assert np.isfinite(
    jax.grad(lambda g: fusion.fuse(logits, [g, *logits[1:]], top_k).sum())(logits[0])
  ).all()


def test_pyramids_must_match():
  scores, logits = pyramid(), pyramid(classes=2)
  with pytest.raises(ValueError, match='differ in shape'):
    fusion.fuse(scores, logits)


@pytest.mark.parametrize('top_k', [0, 1, 2])
def test_fusion_and_its_gradient_are_the_plain_ones(top_k):
  scores, logits = pyramid(batch=1, classes=2), pyramid(batch=1, classes=2)

  def formula(scores, logits, top_k):
    weights = fusion.scale_weights(logits, top_k)
    fine = [jax.image.resize(s, scores[0].shape, 'trilinear') for s in scores]
    return sum(w * s for w, s in zip(weights, fine, strict=True))

  def run(fuse):
    def loss(scores, logits):
      y = fuse(scores, logits, top_k)
      return jnp.sin(y).sum(), y

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(scores, logits)

  expected = run(formula)
  for fuse in (fusion.fuse_plain, fusion.fuse):
    for ours, theirs in zip(*map(jax.tree.leaves, (run(fuse), expected)), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


def test_maps_in_bfloat16_are_mixed_in_float32():
  """What comes out is float32, off by the rounding of the maps; so are the gradients."""
  scores, logits = pyramid(), pyramid()

  def run(maps):
    loss = lambda scores, logits: jnp.sin(fusion.fuse(scores, logits)).sum()
    return fusion.fuse(*maps), *jax.grad(loss, argnums=(0, 1))(*maps)

  y, *gradients = run(jax.tree.map(lambda m: m.astype(jnp.bfloat16), (scores, logits)))
  expected, *slopes = run((scores, logits))
  assert y.dtype == jnp.float32
  assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}
  np.testing.assert_allclose(y, expected, atol=0.04)
  for ours, theirs in zip(*map(jax.tree.leaves, (gradients, slopes)), strict=True):
    scale = float(jnp.abs(theirs).max())
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.03 * scale)
