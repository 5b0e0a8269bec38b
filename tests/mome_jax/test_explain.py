"""Routing maps: tiles, places, and means against the weights of the whole scan."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax import explain, steps


@pytest.mark.parametrize('inside', [(8, 8, 8), (13, 9, 21), (5, 8, 30)])
@pytest.mark.parametrize('overlap', [0.0, 0.3, 0.5])
def test_windows_share_every_voxel(inside, overlap):
  window, block = (8, 8, 8), 2
  padded = [max(8, -(-n // block) * block) for n in inside]
  seen, ends = np.zeros(padded), []
  channels = np.ones((*padded, 1), np.float32)
  for first, following, views in explain._shares(channels, window, overlap, block, inside):
    ends.append((first, following))
    for region, share in views:
      assert share.shape == window
      assert all(r.start % block == 0 for r in region)
      assert region[0].start == first
      seen[region] += share
  expected = np.zeros(padded)
  expected[tuple(slice(n) for n in inside)] = 1
  np.testing.assert_allclose(seen, expected, atol=1e-5)
  assert ends[0][0] == 0 and ends[-1][1] == padded[0]
  assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize(
  ('spacing', 'window', 'cells'),
  [((1.5, 1.5, 1.5), (96, 96, 96), 4), ((6, 6, 6), (32, 32, 32), 1), ((4, 4, 3), (32, 32, 32), 2),
   ((1.5, 1.5, 1.5), (98, 96, 96), 2)],
)  # fmt: skip
def test_cells_of_about_6_mm(spacing, window, cells):
  assert explain.cell_voxels(spacing, window) == cells


def fake_model(top_k=0):
  """Gates and logits that follow the image; enough of a model for the step."""

  def apply(variables, windows, text, context):
    x = jnp.moveaxis(windows, -1, 1)
    gates = [
      jnp.concatenate([x, -2 * x], 1),
      jnp.zeros((len(x), 2, *(n // 2 for n in x.shape[2:]))),
    ]
    return jnp.moveaxis(jnp.concatenate([x - 0.5, 0.2 - x], 1), 1, -1), {'router_logits': gates}

  return types.SimpleNamespace(apply=apply, top_k=top_k, active_scales=(0, 1))


def make_explainer(model):
  predictor = types.SimpleNamespace(
    model=model,
    params={'model': {}},
    context=None,
    path='m',
    devices=jax.devices(),
    embed=lambda texts: jnp.zeros((4, 3)),
  )
  segmenter = types.SimpleNamespace(
    spacing=(3.0, 3.0, 3.0), window=(8, 8, 8), overlap=0.5,
    network_input=lambda image, spacing: (image[..., None] / 100).astype(np.float32),
  )  # fmt: skip
  return explain.Explainer(predictor, ('a', 'b'), ('a', 'b'), segmenter)


@pytest.mark.parametrize('top_k', [0, 1])
def test_maps_and_means_are_those_of_the_whole_scan(top_k):
  image = np.random.default_rng(0).uniform(1, 100, (13, 9, 18)).astype(np.float32)
  maps = make_explainer(fake_model(top_k))(image, (3.0, 3.0, 3.0))
  x = image / 100
  odds = np.exp([[x, 0 * x], [-2 * x, 0 * x]])  # (K, L, ...)
  weights = odds / odds.sum(1, keepdims=True)
  if top_k:
    first = np.arange(2)[:, None, None, None] == weights.argmax(1)[:, None]
    weights = first.astype(float)
  entropy = -(weights * np.log(np.maximum(weights, 1e-6))).sum(1) / np.log(2)
  inside = np.stack([x > 0.5, x < 0.2])
  np.testing.assert_allclose(maps.voxels, inside.sum((1, 2, 3)), rtol=1e-5)
  share = np.stack([weights[k][:, inside[k]].mean(1) for k in range(2)])
  np.testing.assert_allclose(maps.share, share, atol=1e-5)
  expected = [entropy[k][inside[k]].mean() for k in range(2)]
  np.testing.assert_allclose(maps.mean_entropy, expected, atol=1e-5)
  assert maps.weights.shape == (2, 2, 7, 5, 9)  # cells of 2 voxels
  blocks = weights[:, :, :12, :8].reshape(2, 2, 6, 2, 4, 2, 9, 2).mean((3, 5, 7))
  np.testing.assert_allclose(maps.weights[:, :, :6, :4] / 255, blocks, atol=0.003)
  border = weights[:, :, 12, 8].reshape(2, 2, 9, 2).mean(-1)  # cells of which half lies outside
  np.testing.assert_allclose(maps.weights[:, :, 6, 4] / 255, border, atol=0.003)
  np.testing.assert_allclose(maps.cell, 6)
  # Cell 0 lies between voxels 0 and 1.
  np.testing.assert_allclose(maps.origin, (0.5 - (np.array(image.shape) - 1) / 2) * 3)
  plane = maps.plane(maps.entropy[0], 5, image.shape, (3.0, 3.0, 3.0))
  np.testing.assert_array_equal(plane[::2, ::2], maps.entropy[0][:, :, 2])


def test_air_is_not_asked():
  image = np.zeros((16, 8, 8), np.float32)
  image[:8] = 80
  maps = make_explainer(fake_model())(image, (3.0, 3.0, 3.0))
  assert maps.weights[:, :, :6].any((0, 1)).all()  # the window in the middle reaches 4 voxels in
  assert not maps.weights[:, :, 6:].any()
  np.testing.assert_allclose(maps.voxels, [512, 256], rtol=1e-5)
  empty = make_explainer(fake_model())(0 * image, (3.0, 3.0, 3.0))
  assert not empty.voxels.any() and np.isnan(empty.share).all()


def test_window_borders_do_not_show():
  """A network that sees every window otherwise, with gates that depend on the place in it."""
  model = fake_model()

  def apply(variables, windows, text, context):
    ramp = jnp.broadcast_to(jnp.linspace(-2, 2, 8)[:, None, None], windows.shape[:4])[:, None]
    gates = [jnp.concatenate([ramp, ramp], 1), jnp.zeros((1, 2, 4, 4, 4))]
    return jnp.zeros((*windows.shape[:4], 2)), {'router_logits': gates}

  model.apply = apply
  image = np.full((48, 8, 8), 50, np.float32)
  maps = make_explainer(model)(image, (3.0, 3.0, 3.0))
  jumps = np.abs(np.diff(maps.weights[0, 0, 2:-2, 2, 2].astype(int)))  # away from the ends
  # Without blending the weight falls from 0.87 to 0.13 at every border.
  assert jumps.max() < 0.3 * 255


def test_a_single_scale_is_refused():
  model = fake_model()
  model.active_scales = (0,)
  with pytest.raises(ValueError, match='m: this model mixes no scales'):
    make_explainer(model)


def test_entropy_is_one_where_all_scales_weigh_the_same():
  step = steps.make_routing_step(fake_model(), 2)
  windows = jnp.zeros((1, 4, 4, 4, 1))
  did = step({'model': {}}, jnp.zeros((2, 3)), windows, jnp.ones((1, 4, 4, 4)))
  np.testing.assert_allclose(did['entropy'], 1, atol=1e-5)
  np.testing.assert_allclose(did['weights'], 0.5, atol=1e-5)
