"""Routing maps of a segmentation: places, and means against the weights of the whole scan."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax import ops
from mome_jax.inference import router_maps, steps
from mome_jax.inference.segmenter import Segmenter, Settings
from mome_jax.inference.sliding_window import Tiling

pytestmark = pytest.mark.usefixtures('soon')

SPACING = (3.0, 3.0, 3.0)
NAMES = ('a', 'b')


@pytest.mark.parametrize(
  ('spacing', 'cells'),
  [((1.5, 1.5, 1.5), 4), ((6, 6, 6), 1), ((4, 4, 3), 2), ((0.7, 0.7, 5), 4), ((9, 9, 9), 1)],
)
def test_cells_of_about_6_mm(spacing, cells):
  assert router_maps.cell_voxels(spacing) == cells


@pytest.mark.parametrize(
  ('spacing', 'labels'),
  [
    ((4.0, 4.0, 3.0), ['4 mm', '8 mm']),
    ((3.0, 3.0, 2.5), ['3 mm', '6 mm']),
    ((2.0, 2.0, 3.0), ['2 mm', '4 mm']),
    ((0.8, 0.8, 5.0), ['0.8-5 mm', '1.6-10 mm']),
    ((6.0, 1.5, 1.5), ['1.5-6 mm', '3-12 mm']),
  ],
)
def test_a_scale_is_labelled_by_all_sides_of_its_voxels(spacing, labels):
  assert [router_maps.scale_label(spacing, scale) for scale in (0, 1)] == labels


def fake_model(top_k=0):
  """Gates and logits that follow the image; enough of a model for the step."""

  def apply(variables, windows, text, trained_text=None, method=None):
    x = jnp.moveaxis(windows, -1, 1)
    gates = [
      jnp.concatenate([x, -2 * x], 1),
      jnp.zeros((len(x), 2, *(n // 2 for n in x.shape[2:]))),
    ]
    return jnp.moveaxis(jnp.concatenate([x - 0.5, 0.2 - x], 1), 1, -1), {'router_logits': gates}

  return types.SimpleNamespace(apply=apply, top_k=top_k, active_scales=(0, 1), anchor='none')


def make_explainer(model, params=None, window=(8, 8, 8), overlap=0.5, batch_size=1):
  """An explainer and the segmenter of a model, and a list that the shapes of batches go to."""
  params, batches = {'model': params or {}}, []
  text = jnp.zeros((4, 3))

  def ask(step, buckets, windows, *batch):
    batches.append(windows.shape)
    return (step(params, windows, text, *batch) for text in buckets)

  predictor = types.SimpleNamespace(
    model=model, path='m', ask=ask, buckets=lambda texts: [text],
    routing_step=jax.jit(steps.make_routing_step(model)),
  )  # fmt: skip
  settings = Settings(SPACING, ((0, 100),), Tiling(window, overlap, batch_size))
  read = jax.jit(
    steps.make_read_step(types.SimpleNamespace(apply=lambda *a, **k: model.apply(*a, **k)[0]))
  )
  segmenter = Segmenter(lambda windows: ask(read, [text], windows), NAMES, settings)
  return router_maps.Explainer(predictor, NAMES, NAMES, segmenter), segmenter, batches


def explained(image, *arguments, **keywords):
  """The maps of a scan on the network's own grid."""
  explainer, segmenter, _ = make_explainer(*arguments, **keywords)
  watch = explainer.watch()
  segmenter(image, SPACING, watch=watch)
  return watch.maps()


@pytest.mark.parametrize('top_k', [0, 1])
@pytest.mark.parametrize(
  ('overlap', 'batch_size', 'window'),
  [(0.5, 1, (8, 8, 8)), (0.3, 3, (8, 8, 8)), (0.6, 2, (10, 14, 6)), (0.0, 1, (20, 8, 30))],
)
def test_maps_and_means_are_those_of_the_whole_scan(top_k, overlap, batch_size, window):
  """Windows that start at odd voxels, and windows larger than the scan."""
  image = np.random.default_rng(0).uniform(1, 100, (13, 9, 18)).astype(np.float32)
  options = {'overlap': overlap, 'batch_size': batch_size, 'window': window}
  maps = explained(image, fake_model(top_k), **options)
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
  np.testing.assert_allclose(maps.mean_entropy, expected, atol=4e-5)
  assert maps.weights.shape == (2, 2, 7, 5, 9)  # cells of 2 voxels
  blocks = weights[:, :, :12, :8].reshape(2, 2, 6, 2, 4, 2, 9, 2).mean((3, 5, 7))
  np.testing.assert_allclose(maps.weights[:, :, :6, :4] / 255, blocks, atol=0.003)
  border = weights[:, :, 12, 8].reshape(2, 2, 9, 2).mean(-1)  # cells of which half lies outside
  np.testing.assert_allclose(maps.weights[:, :, 6, 4] / 255, border, atol=0.003)
  np.testing.assert_allclose(maps.cell, 6)
  # Cell 0 lies between voxels 0 and 1.
  np.testing.assert_allclose(maps.origin, (0.5 - (np.array(image.shape) - 1) / 2) * 3)
  plane = maps.plane(maps.entropy[0], 5, image.shape, SPACING)
  np.testing.assert_array_equal(plane[::2, ::2], maps.entropy[0][:, :, 2])


def uneven_model():
  """Gates that depend on the place in the window; logits w_0 - w_1, of scores 1 and -1."""

  def apply(variables, windows, text, trained_text=None, method=None):
    ramp = jnp.linspace(-2, 2, windows.shape[1])[:, None, None] + windows[..., 0]
    coarse = jnp.zeros((len(windows), 2, *(n // 2 for n in windows.shape[1:4])))
    gates = [jnp.stack([ramp, -ramp], 1), coarse]
    finest, other = ops.scale_weights(gates, 0)
    return jnp.moveaxis(finest - other, 1, -1), {'router_logits': gates}

  return types.SimpleNamespace(apply=apply, top_k=0, active_scales=(0, 1), anchor='none')


@pytest.mark.parametrize('shape', [(31, 12, 9), (6, 7, 30)])
@pytest.mark.parametrize('overlap', [0.25, 0.5])
def test_shares_are_those_that_made_the_logits(shape, overlap):
  """Every blended logit is w_0 - w_1 of the blended shares, however a network sees its windows."""
  image = np.random.default_rng(0).uniform(1, 100, shape).astype(np.float32)
  explainer, segmenter, batches = make_explainer(uneven_model(), overlap=overlap, batch_size=2)
  watch, logits = explainer.watch(), []
  segmenter(image, SPACING, lambda s: logits.append(np.stack(list(map(s.logits, (0, 1))))),
            watch=watch)  # fmt: skip
  asked = len(batches)
  whole, logits = np.concatenate(logits, 1), []
  segmenter(image, SPACING, lambda s: logits.append(np.stack(list(map(s.logits, (0, 1))))))
  assert len(batches) == 2 * asked  # one pass with the maps and one without
  np.testing.assert_allclose(whole, np.concatenate(logits, 1), atol=1e-6)
  even = whole[:, : shape[0] // 2 * 2, : shape[1] // 2 * 2, : shape[2] // 2 * 2]
  d, h, w = (n // 2 for n in even.shape[1:])
  mean = even.reshape(2, d, 2, h, 2, w, 2).mean((2, 4, 6))
  np.testing.assert_allclose(watch.maps().weights[:, 0, :d, :h, :w] / 255, (mean + 1) / 2,
                             atol=0.003)  # fmt: skip


@pytest.mark.parametrize(('anchor', 'start'), [('finest', 255), ('equal', 127.5)])
def test_a_mixture_with_an_anchor_is_shown_as_far_as_it_counts(anchor, start):
  """y = a + tanh(share) (sum w_l s_l - a)."""
  model = uneven_model()
  model.anchor = anchor
  image = np.full((8, 8, 8), 50, np.float32)
  share = 0.3
  none, some, full = (
    explained(image, model, {'mixture_share': jnp.float32(value)}) for value in (0, share, 20)
  )
  np.testing.assert_allclose(none.weights[:, 0], start, atol=0.5)
  np.testing.assert_allclose(none.entropy, 0 if anchor == 'finest' else 255, atol=0.01)
  mixed = start + np.tanh(share) * (full.weights[:, 0].astype(float) - start)
  np.testing.assert_allclose(some.weights[:, 0], mixed, atol=1)
  np.testing.assert_allclose(some.weights.astype(int).sum(1), 255, atol=1)


def test_the_one_scale_beside_an_anchor_counts_by_its_weight():
  """y = s_0 + tanh(0.3) (w_1 s_1 - s_0): the mixture of one scale weighs less than its share."""
  model = fake_model(top_k=1)
  model.anchor = 'finest'
  image = np.full((8, 8, 8), 50, np.float32)
  maps = explained(image, model, {'mixture_share': jnp.float32(0.3)})
  coarse = 1 / (1 + np.exp(-1))  # of the second class, whose gates are -1 and 0
  parts = np.array([1 - np.tanh(0.3), np.tanh(0.3) * coarse])
  expected = 255 * parts / parts.sum()
  np.testing.assert_allclose(maps.weights[1, :, 0, 0, 0], expected, atol=0.6)


def test_air_is_not_asked():
  image = np.zeros((16, 8, 8), np.float32)
  image[:8] = 80
  maps = explained(image, fake_model())
  assert maps.weights[:, :, :6].any((0, 1)).all()  # the window in the middle reaches 4 voxels in
  assert not maps.weights[:, :, 6:].any()
  np.testing.assert_allclose(maps.voxels, [512, 256], rtol=1e-5)
  empty = explained(0 * image, fake_model())
  assert not empty.voxels.any() and np.isnan(empty.share).all()


def test_a_gap_of_air_between_windows():
  image = np.zeros((64, 8, 8), np.float32)
  image[:8] = image[-8:] = 80
  maps = explained(image, fake_model(), overlap=0.0)
  weights = maps.weights[0, 0, :, 2, 2]
  assert (weights[:4] > 0).all() and (weights[-4:] > 0).all() and not weights[4:-4].any()


def test_window_borders_do_not_show():
  """A network that sees every window otherwise, with gates that depend on the place in it."""
  model = fake_model()

  def apply(variables, windows, text, trained_text=None, method=None):
    ramp = jnp.broadcast_to(jnp.linspace(-2, 2, 8)[:, None, None], windows.shape[:4])[:, None]
    gates = [jnp.concatenate([ramp, ramp], 1), jnp.zeros((1, 2, 4, 4, 4))]
    return jnp.zeros((*windows.shape[:4], 2)), {'router_logits': gates}

  model.apply = apply
  image = np.full((48, 8, 8), 50, np.float32)
  maps = explained(image, model)
  jumps = np.abs(np.diff(maps.weights[0, 0, 2:-2, 2, 2].astype(int)))  # away from the ends
  # Without blending the weight falls from 0.87 to 0.13 at every border.
  assert jumps.max() < 0.3 * 255


def test_a_single_scale_is_refused():
  model = fake_model()
  model.active_scales = (0,)
  with pytest.raises(ValueError, match='m: this model mixes no scales'):
    make_explainer(model)


def test_entropy_is_one_where_all_scales_weigh_the_same():
  step = steps.make_routing_step(fake_model())
  windows, cells = jnp.zeros((1, 4, 4, 4, 1)), [jnp.eye(2).repeat(2, 1)[None]] * 3
  _, routed = step({'model': {}}, windows, jnp.zeros((2, 3)), jnp.ones((1, 4, 4, 4)), cells)
  np.testing.assert_allclose(routed['maps'][:, :, 2], 8, rtol=1e-5)
  np.testing.assert_allclose(routed['maps'][:, :, :2], 4, rtol=1e-5)
