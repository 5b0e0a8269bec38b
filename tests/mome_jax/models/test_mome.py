"""The whole network: published sizes, heads from the formula, independence of the prompts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from mome_jax.errors import ConfigError
from mome_jax.models import build_model, heads, router

pytestmark = pytest.mark.usefixtures('soon')


def config(**changes):
  values = ConfigDict(
    {
      'backbone': {'name': 'unet', 'size': 'tiny'},
      'remat': False,
      'experts': 'pyramid',
      'scales': (0, 1),  # of four, which take twice as long to compile
      'top_k': 0,
      'router_inputs': 'text+vision',
      'anchor': 'none',
      'router_apart': False,
      'width': 64,
      'router_width': 8,
      'head_activation': 'relu',
      'class_chunk': 2,
      'dtype': 'float32',
    }
  )
  with values.unlocked():
    values.update(changes)
  return values


def example(sides=(8, 8, 16), classes=5, channels=2):
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(2, *sides, channels)).astype(np.float32)
  return jnp.asarray(image), jnp.asarray(rng.normal(size=(classes, 12)), jnp.float32)


def start(model, image, text):
  """Random variables, and the compiled forward pass.

  Filled in by numpy, because compiling the initialisation takes longer than the test.
  """
  rng = np.random.default_rng(1)

  def fill(path, leaf):
    noise = rng.normal(size=leaf.shape)
    if path[-1].key == 'scale':
      return jnp.asarray(1 + 0.1 * noise, jnp.float32)
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
    return jnp.asarray(noise * np.sqrt(2 / fan_in), jnp.float32)

  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text)
  return jax.tree_util.tree_map_with_path(fill, shapes), jax.jit(model.apply)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_parameters_of_the_clip_driven_universal_model():
  model = build_model(
    config(backbone={'name': 'unet', 'size': 'base'}, experts='finest', width=256)
  )
  image, text = jnp.zeros((1, 16, 16, 16, 1)), jnp.zeros((32, 512))
  params = jax.eval_shape(model.init, jax.random.key(0), image, text)['params']
  assert count(params['backbone']) == 19_073_600
  assert count(params) == 19_416_417


@pytest.mark.parametrize(('activation', 'slope'), [('relu', 0.0), ('leaky_relu', 0.01)])
def test_a_head_follows_the_formula(activation, slope):
  rng = np.random.default_rng(0)
  theta = rng.normal(size=(2, heads.NUM_PARAMETERS)).astype(np.float32)
  z = rng.normal(size=(2, 8, 2, 3, 4)).astype(np.float32)
  got = heads.apply_head(jnp.asarray(theta), jnp.asarray(z), activation)
  act = lambda x: np.maximum(x, 0) + slope * np.minimum(x, 0)
  for b in range(2):
    w1, w2, w3, b1, b2, b3 = np.split(theta[b], [64, 128, 136, 144, 152])
    x = np.moveaxis(z[b], 0, -1) @ w1.reshape(8, 8).T + b1  # rows of w are outputs
    x = act(x) @ w2.reshape(8, 8).T + b2
    np.testing.assert_allclose(got[b], act(x) @ w3 + b3, rtol=1e-4, atol=1e-4)


def test_fresh_heads_expect_a_class_in_one_voxel_of_a_hundred():
  variables = heads.HeadGenerator().init(jax.random.key(0), jnp.ones((1, 4)), jnp.ones((2, 4)))
  bias = variables['params']['controller']['bias']
  np.testing.assert_allclose(jax.nn.sigmoid(bias[-1]), 0.01, rtol=1e-5)
  np.testing.assert_array_equal(bias[:-1], 0)


def test_the_network_follows_its_formulas():
  """Those of docs/method.md, from the pyramid on; the router's have a test of their own."""
  image, text = example()
  options = {'head_activation': 'leaky_relu', 'anchor': 'finest', 'top_k': 1}
  model = build_model(config(scales=(0, 2), **options))
  variables, _ = start(model, image, text)
  variables['params']['mixture_share'] = jnp.float32(0.6)
  params = jax.tree.map(np.asarray, variables['params'])

  @jax.jit
  def run(variables):
    pyramid = model.backbone.apply({'params': variables['params']['backbone']}, image)
    return pyramid, *model.apply(variables, image, text)

  def dense(x, part):
    return x @ part['kernel'].reshape(-1, part['kernel'].shape[-1]) + part['bias']

  def normalised(x, part):
    affine = (torch.from_numpy(part[name]) for name in ('scale', 'bias'))
    x = torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())
    y = torch.nn.functional.group_norm(x, np.gcd(16, x.shape[1]), *affine)
    return np.moveaxis(y.numpy(), 1, -1)

  pyramid, logits, aux = run(variables)
  part = params['context']
  pooled = np.maximum(normalised(pyramid[-1], part['norm']), 0).mean((1, 2, 3))
  context = dense(pooled, part['project'])
  classes = np.maximum(dense(np.asarray(text), params['text']), 0)
  for scale, scores in zip((0, 2), aux['expert_logits'], strict=True):
    part = params[f'expert_{scale}']
    z = dense(np.maximum(normalised(pyramid[scale], part['norm']), 0), part['project'])
    for k in range(len(text)):
      pairs = np.concatenate([context, np.tile(classes[k], (len(image), 1))], 1)
      theta = dense(pairs, params['heads']['controller'])
      expected = heads.apply_head(theta, np.moveaxis(z, -1, 1), 'leaky_relu')
      bound = 1e-4 * np.abs(expected).max()
      np.testing.assert_allclose(scores[:, k], expected, atol=bound)

  features = pyramid[0], pyramid[2]
  route = jax.jit(router.Router(8).apply)
  gates = route({'params': params['router']}, features, classes, context)
  for gate, x, got in zip(gates, features, aux['router_logits'], strict=True):
    expected = gate.of_all(x)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())

  (fine, trust), (coarse, other) = (
    (jax.image.resize(m, aux['expert_logits'][0].shape, 'trilinear') for m in maps)
    for maps in zip(aux['expert_logits'], aux['router_logits'], strict=True)
  )
  weight = 1 / (1 + np.exp(other - trust))  # of the finest scale; the better one alone takes part
  mixture = np.where(trust >= other, weight * fine, (1 - weight) * coarse)
  expected = np.moveaxis(fine + np.tanh(0.6) * (mixture - fine), 1, -1)
  np.testing.assert_allclose(logits, expected, atol=3e-5 * np.abs(fine).max())


@pytest.mark.parametrize(
  'changes',
  [{'scales': (), 'top_k': 2}, {'experts': 'finest'}, {'scales': (0, 2)}],
)
def test_a_class_does_not_depend_on_the_other_prompts(changes):
  model = build_model(config(**changes))
  image, text = example()
  variables, apply = start(model, image, text)
  together, aux = apply(variables, image, text)
  assert together.shape == (*image.shape[:-1], 5)
  assert together.dtype == jnp.float32
  scales = 1 if 'experts' in changes else len(changes['scales']) or 4
  assert len(aux['expert_logits']) == scales
  padded, _ = apply(variables, image, jnp.concatenate([text, jnp.zeros((3, 12))]))
  alone, _ = apply(variables, image, text[3:4])
  scale = float(jnp.abs(together).max())
  np.testing.assert_allclose(padded[..., :5], together, atol=1e-6 * scale)
  np.testing.assert_allclose(alone[..., 0], together[..., 3], atol=1e-6 * scale)


def test_a_sample_does_not_depend_on_the_batch():
  model = build_model(config())
  image, text = example()
  variables, apply = start(model, image, text)
  together, _ = apply(variables, image, text)
  alone, _ = apply(variables, image[1:], text)
  np.testing.assert_allclose(alone[0], together[1], atol=1e-5 * float(jnp.abs(together).max()))


def test_gradients_reach_every_parameter():
  model = build_model(config(scales=()))
  image, text = example((16, 16, 16))
  variables, apply = start(model, image, text)
  loss = lambda p: jnp.square(apply({'params': p}, image, text)[0] - 1).mean()
  grads = jax.jit(jax.grad(loss))(variables['params'])
  still = [
    jax.tree_util.keystr(path)
    for path, g in jax.tree_util.tree_leaves_with_path(grads)
    if not np.abs(g).max() > 0
  ]
  assert still == []


@pytest.mark.parametrize(
  ('anchor', 'plain'), [('finest', {'experts': 'finest'}), ('equal', {'router_inputs': 'uniform'})]
)
def test_a_mixture_is_its_anchor_at_the_start_and_learns_to_mix(anchor, plain):
  image, text = example()
  baseline = build_model(config(**plain))
  mixture = build_model(config(anchor=anchor))
  variables, _ = start(mixture, image, text)
  params = variables['params']
  inherited = jax.eval_shape(baseline.init, jax.random.key(0), image, text)['params']
  expected, _ = jax.jit(baseline.apply)(
    {'params': {name: params[name] for name in inherited}}, image, text
  )

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(share):
    logits, _ = mixture.apply({'params': params | {'mixture_share': share}}, image, text)
    return jnp.square(logits - 1).mean(), logits

  for share in (0.0, -0.3):  # no mixture counts less than nothing
    (_, logits), slope = run(jnp.float32(share))
    np.testing.assert_allclose(logits, expected, atol=3e-5 * float(jnp.abs(expected).max()))
    assert abs(slope) > 1e-4


def test_under_equal_weights_nothing_teaches_the_share():
  """Three thirds are no 1 in float32: the round-off has a sign, of which Adam makes a step."""
  image, text = example()
  model = build_model(config(anchor='equal', router_inputs='uniform', scales=(0, 1, 2)))
  params = start(model, image, text)[0]['params']

  @jax.jit
  @jax.grad
  def slope(share):
    return model.apply({'params': params | {'mixture_share': share}}, image, text)[0].sum()

  assert slope(jnp.float32(0.1)) == 0


def test_a_router_that_learns_apart_leaves_its_experts_the_gradient_of_equal_weights():
  image, text = example()
  apart = build_model(config(anchor='equal', router_apart=True))
  equal = build_model(config(router_inputs='uniform'))
  params = start(apart, image, text)[0]['params'] | {'mixture_share': jnp.float32(0.4)}
  inherited = jax.eval_shape(equal.init, jax.random.key(0), image, text)['params']
  slope = np.random.default_rng(2).normal(size=(*image.shape[:4], len(text)))

  def gradient(model, params):
    loss = lambda params: (model.apply({'params': params}, image, text)[0] * slope).sum()
    return jax.jit(jax.grad(loss))(params)

  got = gradient(apart, params)
  expected = gradient(equal, {name: params[name] for name in inherited})
  for name, part in expected.items():
    for ours, theirs in zip(*map(jax.tree.leaves, (got[name], part)), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(got['router']))


def test_a_model_is_what_its_config_says():
  options = {
    'scales': (0, 2), 'top_k': 1, 'router_inputs': 'vision', 'anchor': 'equal',
    'router_apart': True, 'width': 48, 'router_width': 6, 'head_activation': 'leaky_relu',
    'class_chunk': 3, 'dtype': 'bfloat16',
  }  # fmt: skip
  model = build_model(config(**options))
  assert {name: getattr(model, name) for name in options} == options
  assert model.backbone.dtype == jnp.bfloat16


def test_a_router_that_learns_apart_needs_an_anchor():
  with pytest.raises(ConfigError, match='set model.anchor to equal or finest'):
    build_model(config(router_apart=True))


@pytest.mark.parametrize(('banks', 'left'), [((1,), None), ((0, 1), (0,))])
def test_the_baseline_of_a_model_with_banks_has_those_of_the_finest_scale(banks, left):
  options = {
    'scales': banks, 'num_experts': 4, 'top_k': 2, 'expansion': 2, 'executor': 'dense',
    'capacity_factor': 1.0,
  }  # fmt: skip
  model = build_model(config(experts='finest', bank=options))
  assert (model.bank and model.bank.scales) == left


@pytest.mark.slow
@pytest.mark.parametrize(('backbone', 'side'), [('unet', 16), ('swin_unetr', 64)])
def test_the_same_with_and_without_rematerialisation(backbone, side):
  image, text = example((side, side, side), classes=2)
  results, recomputed = [], []
  for remat in (False, True):
    options = {'name': backbone, 'size': 'tiny'}
    model = build_model(config(backbone=options, remat=remat, dtype='float64'))
    variables, _ = start(model, image, text)
    # In float64: rounding moves features to the other side of a relu's kink.
    with jax.enable_x64(True):
      inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (variables, image, text))

      def loss(variables, image, text, model=model):
        logits, _ = model.apply(variables, image, text)
        return jnp.tanh(logits).mean(), logits

      traced = jax.jit(jax.grad(loss, has_aux=True)).trace(*inputs)
      recomputed.append(str(traced.jaxpr).count('remat2['))
      results.append(traced.lower().compile()(*inputs))
  assert recomputed[1] >= recomputed[0] + model.backbone.num_scales
  for ours, expected in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(
      ours, expected, atol=1e-6 * max(1e-3, float(jnp.abs(expected).max()))
    )


def test_bfloat16_is_close_to_float32_even_with_random_weights():
  # Norms of random features, whose mean is large, amplify rounding; see test_shipped for trained.
  image, text = example((32, 32, 32))
  variables, apply = start(build_model(config()), image, text)
  exact, _ = apply(variables, image, text)
  rough, _ = jax.jit(build_model(config(dtype='bfloat16')).apply)(variables, image, text)
  error = jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact)
  assert 0 < error < 5e-2


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'experts': 'coarsest'}, "model.experts is 'coarsest'"),
    ({'backbone': {'name': 'unet', 'size': 'huge'}}, "model.backbone.size is 'huge'"),
    ({'backbone': {'name': 'vnet', 'size': 'tiny'}}, "model.backbone.name is 'vnet'"),
    ({'scales': (1, 2)}, 'model.scales'),
    ({'router_inputs': 'audio'}, "model.router_inputs is 'audio'"),
    ({'top_k': 5}, 'model.top_k is 5'),
    ({'head_activation': 'tanh'}, "model.head_activation is 'tanh'"),
  ],
)
def test_a_wrong_config_says_what_is_known(changes, message):
  with pytest.raises(ValueError, match=message):
    build_model(config(**changes))


def test_an_image_that_does_not_fit_the_stride_is_refused():
  model = build_model(config())
  image, text = example((16, 16, 20))
  with pytest.raises(ValueError, match='multiple of 8'):
    model.init(jax.random.key(0), image, text)
