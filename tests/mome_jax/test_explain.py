"""Routing maps: tiles, places, and means against the weights of the whole scan."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax import explain, steps


@pytest.mark.parametrize('inside', [(8, 8, 8), (13, 9, 21), (5, 8, 30)])
def test_every_voxel_counts_once(inside):
  window = (8, 8, 8)
  padded = [max(8, -(-n // 2) * 2) for n in inside]
  seen = np.zeros(padded, int)
  for region, counted in explain._tiles(padded, window, inside):
    assert counted.shape == window
    seen[region] += counted
  expected = np.zeros(padded, int)
  expected[tuple(slice(n) for n in inside)] = 1
  np.testing.assert_array_equal(seen, expected)


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
    model=model, params={'model': {}}, context=None, path='m', embed=lambda texts: jnp.zeros((4, 3))
  )
  segmenter = types.SimpleNamespace(
    spacing=(3.0, 3.0, 3.0), window=(8, 8, 8),
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
  np.testing.assert_array_equal(maps.voxels, inside.sum((1, 2, 3)))
  share = np.stack([weights[k][:, inside[k]].mean(1) for k in range(2)])
  np.testing.assert_allclose(maps.share, share, atol=1e-5)
  expected = [entropy[k][inside[k]].mean() for k in range(2)]
  np.testing.assert_allclose(maps.mean_entropy, expected, atol=1e-5)
  assert maps.weights.shape == (2, 2, 7, 5, 9)  # cells of 2 voxels
  blocks = weights[:, :, :12, :8].reshape(2, 2, 6, 2, 4, 2, 9, 2).mean((3, 5, 7))
  np.testing.assert_allclose(maps.weights[:, :, :6, :4] / 255, blocks, atol=0.003)
  np.testing.assert_allclose(maps.cell, 6)
  # Cell 0 lies between voxels 0 and 1.
  np.testing.assert_allclose(maps.origin, (0.5 - (np.array(image.shape) - 1) / 2) * 3)
  plane = maps.plane(maps.entropy[0], 5, image.shape, (3.0, 3.0, 3.0))
  np.testing.assert_array_equal(plane[::2, ::2], maps.entropy[0][:, :, 2])


def test_air_is_not_asked():
  image = np.zeros((16, 8, 8), np.float32)
  image[:8] = 80
  maps = make_explainer(fake_model())(image, (3.0, 3.0, 3.0))
  assert not maps.weights[:, :, 4:].any()
  assert maps.voxels.tolist() == [512, 0]
  assert np.isnan(maps.share[1]).all()


def test_a_single_scale_is_refused():
  model = fake_model()
  model.active_scales = (0,)
  with pytest.raises(ValueError, match='m: this model mixes no scales'):
    make_explainer(model)


def test_entropy_is_one_where_all_scales_weigh_the_same():
  step = steps.make_routing_step(fake_model(), 2)
  windows = jnp.zeros((1, 4, 4, 4, 1))
  did = step({'model': {}}, jnp.zeros((2, 3)), windows, jnp.ones((1, 4, 4, 4), bool))
  np.testing.assert_allclose(did['entropy'], 1, atol=1e-5)
  np.testing.assert_allclose(did['weights'], 0.5, atol=1e-5)
