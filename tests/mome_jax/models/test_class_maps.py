"""The maps of all classes as a TPU makes them, against the loop over classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax.models import class_maps, heads, router
from mome_jax.training import hlo_traffic, losses

pytestmark = pytest.mark.usefixtures('soon')

B, K, WIDTHS = 2, 5, (6, 4)
RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


def sources(scales=2, dtype=jnp.float32, share=None):
  widths, grids = WIDTHS[:scales], [(4 >> level, 6 >> level, 8 >> level) for level in range(scales)]
  gates = [router.Gate(normal(B, K, width), normal(B, K)) for width in widths]
  return class_maps.Sources(
    theta=0.5 * normal(B, K, heads.NUM_PARAMETERS),
    gates=tuple(gates) if scales > 1 else (),
    features=tuple(
      normal(B, *grid, width, dtype=dtype) for grid, width in zip(grids, widths, strict=True)
    ),
    outputs=tuple(normal(B, heads.WIDTH, *grid, dtype=dtype) for grid in grids),
    share=share,
  )


def run(make, given, options):
  """Maps, and the gradients of a sum of them by all sources."""

  def loss(given):
    maps = make(given, options)
    return sum(jnp.sin(m).sum() for m in jax.tree.leaves(maps)), maps

  (_, maps), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
  return maps, slopes


@pytest.mark.parametrize(
  ('scales', 'anchor', 'share', 'top_k', 'apart'),
  [
    (1, 'none', None, 0, False),
    (2, 'none', None, 1, False),
    (2, 'equal', 0.3, 0, True),
    (2, 'finest', 0.3, 0, False),
  ],
)
def test_maps_made_together_are_those_made_by_class(scales, anchor, share, top_k, apart):
  """Of a number of classes that no chunk divides."""
  given = sources(scales, share=None if share is None else jnp.float32(share))
  options = class_maps.Options(top_k, anchor, 'leaky_relu', chunk=2, router_apart=apart)
  expected = run(class_maps.maps_by_class, given, options)
  got = run(class_maps.maps_together, given, options)
  for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize('anchor', ['equal', 'finest'])
def test_scores_learn_from_the_anchor_alone_under_a_router_that_learns_apart(anchor):
  given, weight = sources(), normal(B, K, 4, 6, 8)

  def gradient(share, apart):
    options = class_maps.Options(0, anchor, 'leaky_relu', chunk=K, router_apart=apart)
    loss = lambda given: (class_maps.maps_by_class(given, options).logits * weight).sum()
    return jax.jit(jax.grad(loss))(given.replace(share=jnp.float32(share)))

  apart, together, alone = gradient(0.4, True), gradient(0.4, False), gradient(0.0, False)
  got = [apart.gates, apart.share, apart.theta, apart.outputs]
  expected = [together.gates, together.share, alone.theta, alone.outputs]
  for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


def test_maps_of_a_network_in_bfloat16_are_close_to_those_in_float32():
  given = sources(dtype=jnp.bfloat16)
  options = class_maps.Options(0, 'none', 'leaky_relu', chunk=8)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), given)
  expected = class_maps.maps_by_class(exact, options)
  got = jax.jit(functools.partial(class_maps.maps_together, options=options))(given)
  for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, atol=0.03 * float(jnp.abs(theirs).max()))


def test_weights_in_two_parts_are_exact_to_a_millionth():
  """In one part of 8 bits they would be off by 2^-9."""
  features = normal(1, 2, 3, 4, 64, dtype=jnp.bfloat16)
  gate = router.Gate(normal(1, K, 64), normal(1, K))
  exact = np.einsum(
    'bkc,bdhwc->bkdhw', np.asarray(gate.weight, np.float64), np.asarray(features, np.float64)
  )
  exact += np.asarray(gate.bias)[..., None, None, None]
  got = jax.jit(router.Gate.of_all)(gate, features)
  np.testing.assert_allclose(got, exact, atol=2**-16 * np.abs(exact).max())


def test_what_is_made_for_maps_is_told_apart_in_the_traffic_of_a_program():
  """By the name of their scope: of maps, their loss and its gradient hardly a byte lacks it."""
  given, options = sources(scales=1), class_maps.Options(0, 'none', 'leaky_relu', chunk=K)
  known = jnp.ones((B, K, 4, 6, 8), bool)

  def loss(given):
    bce, dice = losses.masked_bce_dice(class_maps.make_maps(given, options).logits, known, known)
    return bce + dice

  kinds = hlo_traffic.by_kind(jax.jit(jax.grad(loss)).lower(given).compile().as_text())
  assert kinds['class maps'] > 0.9 * sum(kinds.values())
