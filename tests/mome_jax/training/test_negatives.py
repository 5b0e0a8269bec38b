"""Prompts of other anatomy in the loss that trains: empty masks, and nothing else is changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.anatomy import IGNORE_CODE, OUTSIDE_CODE, TEMPLATE
from mome_jax.configs import demo
from mome_jax.models import build_model
from mome_jax.text import prompt_inputs
from mome_jax.text.t5 import build_text_encoder
from mome_jax.text.tokenizer import DEFAULT_MODEL, Tokenizer
from mome_jax.training import state, steps

CLASSES = ('liver', 'left kidney')
OTHERS = ['the tongue', 'A CT of the right lens']


class Given:
  """A model whose logits are its parameters; the text says how many of them."""

  def apply(self, variables, image, text, trained_text=None, **kwargs):
    logits = variables['params'][..., : len(text)]
    return logits, {'expert_logits': [jnp.moveaxis(logits, -1, 1)], 'banks': {}}


def patch(size):
  """A scan whose liver is a bright ball, without kidneys."""
  grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing='ij'), -1)
  ball = np.linalg.norm(grid - size / 2, axis=-1) < size / 4
  noise = np.random.default_rng(0).normal(0, 0.05, (size,) * 3)
  return {
    'image': np.repeat((0.3 + 0.4 * ball + noise)[None, ..., None], 2, -1).astype(np.float32),
    'label': np.where(ball, TEMPLATE.get('liver').index, 0).astype(np.uint8)[None],
    'supervised': np.ones((1, 2), bool),
    'absent': np.zeros((1, 2), bool),
    'frame': np.array([[0, 0, 1, 0]], np.float32),
    'slice_range': np.full((1, 2, 2), (-np.inf, np.inf), np.float32),
  }


def given(classes=2, **weights):
  """learn(logits, batch, prompts) -> slopes, metrics; logits and prompts of so many."""
  config = demo.get_config().train
  config.update({'expert_loss': 0.0, **weights})
  loss_fn = steps.make_loss_fn(Given(), None, jnp.asarray(TEMPLATE.code_table(CLASSES)), config)
  logits = np.random.default_rng(1).normal(size=(1, 8, 8, 8, classes)).astype(np.float32)
  prompts = {kind: {'vectors': jnp.ones((2, 4))} for kind in ('sampled', 'default')}
  learn = jax.jit(jax.grad(lambda x, *inputs: loss_fn({'model': x}, *inputs), has_aux=True))
  return learn, logits, prompts


def test_bce_of_an_empty_mask_beside_what_the_classes_learn():
  batch = patch(8)
  batch['label'][0, 0] = IGNORE_CODE
  batch['supervised'][0, 1] = False
  learn, logits, prompts = given(classes=5, negative_loss=0.5)
  slopes, metrics = learn(logits, batch, prompts | {'negative': {'vectors': jnp.ones((3, 4))}})
  without, alone = learn(logits, batch, prompts)
  x = logits[0, 1:, ..., 2:].astype(np.float64)  # what is ignored, first, counts for nothing
  np.testing.assert_allclose(metrics['loss_negative'], np.logaddexp(0, x).mean(), rtol=1e-5)
  np.testing.assert_allclose(slopes[0, 1:, ..., 2:], 0.5 / (1 + np.exp(-x)) / x.size, rtol=1e-4)
  assert not np.asarray(slopes[0, 0, ..., 2:]).any()
  # Of a class and a case that labels it, to the last bit what it was without; of another, nothing.
  np.testing.assert_array_equal(slopes[..., :2], without[..., :2])
  assert np.asarray(slopes[..., 0]).any() and not np.asarray(slopes[..., 1]).any()
  np.testing.assert_allclose(
    metrics['loss'], alone['loss'] + 0.5 * metrics['loss_negative'], rtol=1e-6
  )
  assert 'loss_negative' not in alone


def test_classes_that_the_scan_cannot_show_have_a_term_of_their_own():
  batch = patch(8)
  learn, logits, prompts = given(absent_loss=3.0)
  unknown, alone = learn(logits, batch | {'supervised': np.array([[True, False]])}, prompts)
  slopes, metrics = learn(logits, batch | {'absent': np.array([[False, True]])}, prompts)
  x = logits[..., 1].astype(np.float64)
  np.testing.assert_allclose(metrics['loss_absent'], np.logaddexp(0, x).mean(), rtol=1e-5)
  np.testing.assert_allclose(slopes[..., 1], 3 / (1 + np.exp(-x)) / x.size, rtol=1e-4)
  # What the other class learns does not depend on it.
  np.testing.assert_array_equal(slopes[..., 0], unknown[..., 0])
  for name in ('loss_bce', 'loss_dice'):
    assert metrics[name] == alone[name] > 0
  assert alone['loss_absent'] == 0
  np.testing.assert_allclose(metrics['loss'], alone['loss'] + 3 * metrics['loss_absent'], rtol=1e-6)


def test_what_no_label_tells_is_empty_outside_the_patient():
  """Of two classes: liver known in the upper half of the patch, the kidney nowhere."""
  batch = patch(8)
  batch['label'][0, :, :, ::2] = OUTSIDE_CODE  # half of every slice
  batch['slice_range'][0, 0] = 4, np.inf
  batch['supervised'][0, 1] = False
  learn, logits, prompts = given(outside_loss=3.0)
  slopes, metrics = learn(logits, batch, prompts)
  outside = batch['label'][0] == OUTSIDE_CODE
  liver, kidney = (logits[0, ..., k].astype(np.float64) for k in (0, 1))
  np.testing.assert_allclose(metrics['loss_outside'], np.logaddexp(0, kidney[outside]).mean(), 1e-5)
  taught = 3 / (1 + np.exp(-kidney)) / outside.sum()
  np.testing.assert_allclose(slopes[0, ..., 1], np.where(outside, taught, 0), rtol=1e-4)
  # Beyond its heights the liver learns there too, as part of its mean.
  known = outside | (np.arange(8) >= 4)
  target = (batch['label'][0] == TEMPLATE.get('liver').index) & known
  bce = np.logaddexp(0, liver) - target * liver
  np.testing.assert_allclose(metrics['loss_bce'], bce[known].mean(), rtol=1e-5)
  assert (np.asarray(slopes[0, ..., 0]) != 0).tolist() == known.tolist()


@pytest.fixture(scope='module')
def run():
  """run(params, batch) -> gradients, metrics with the logits of classes and others; parameters."""
  config = demo.get_config()
  config.classes = CLASSES
  config.model.backbone.size = 'tiny'
  config.train.update({'text_loss': 0.0, 'text_rate': 1.0})
  model, encoder = build_model(config.model), build_text_encoder(config.text)
  kept = {}

  class Keeping:
    def apply(self, *args, **kwargs):
      logits, aux = model.apply(*args, **kwargs)
      kept['logits'] = logits
      return logits, aux

  table = jnp.asarray(TEMPLATE.code_table(CLASSES))
  loss_fn = steps.make_loss_fn(Keeping(), encoder, table, config.train)
  encode = prompt_inputs.joint(Tokenizer(DEFAULT_MODEL), 16)
  prompts = {'sampled': encode(['liver', 'left kidney']), 'negative': encode(OTHERS)}
  prompts['default'] = prompts['sampled']

  def loss(params, batch):
    value, metrics = loss_fn(params, batch, prompts)
    return value, metrics | kept

  key = jax.random.key(0, impl='rbg')
  params = jax.jit(lambda: state.init_params(config, model, encoder, key))()
  return jax.jit(jax.grad(loss, has_aux=True)), params


def test_what_an_empty_mask_teaches(run):
  """With no case that labels a class, all that is learned comes from prompts of other anatomy."""
  gradients, params = run
  batch = patch(16)
  batch['supervised'][:] = False
  slopes, metrics = gradients(params, batch)
  assert metrics['loss_bce'] == metrics['loss_dice'] == 0
  for part in (slopes['text'], slopes['model']['heads'], slopes['model']['text']):
    assert optax.tree.norm(part) > 1e-4


def test_other_anatomy_and_absent_classes_become_empty(run):
  gradients, params = run
  batch = patch(16)
  optimizer = optax.adam(3e-3)
  moments = optimizer.init(params)
  update = jax.jit(optimizer.update)
  _, before = gradients(params, batch)
  for _ in range(60):
    slopes, _ = gradients(params, batch)
    updates, moments = update(slopes, moments)
    params = optax.apply_updates(params, updates)
  _, after = gradients(params, batch)
  masks = lambda metrics: np.asarray(metrics['logits'])[0] > 0
  liver = batch['label'][0] > 0
  overlap = 2 * (masks(after)[..., 0] & liver).sum() / (masks(after)[..., 0].sum() + liver.sum())
  assert overlap > 0.9
  assert masks(before)[..., 1:].any((0, 1, 2)).all()
  assert not masks(after)[..., 1:].any()


def test_a_text_encoder_that_stays_as_it_is_has_no_gradient():
  """Else it would count in the norm that is clipped, and slow all others; nor a loss of its own."""

  class OfText:
    def apply(self, variables, image, text, trained_text=None, **kwargs):
      logits = variables['params'] * text.sum(-1) + jnp.zeros((*image.shape[:-1], 1))
      return logits, {'expert_logits': [None], 'banks': {}}

  config = demo.get_config()
  encoder = build_text_encoder(config.text)
  prompts = prompt_inputs.joint(Tokenizer(DEFAULT_MODEL), 16)(list(CLASSES))
  prompts = {'sampled': prompts, 'default': prompts}
  params = {'model': jnp.ones(2)}
  params['text'] = encoder.init(jax.random.key(0), **prompts['default'])['params']
  table = jnp.asarray(TEMPLATE.code_table(CLASSES))
  norms = []
  for rate in (0.0, 0.5):
    config.train.text_rate = rate
    loss_fn = steps.make_loss_fn(OfText(), encoder, table, config.train)
    slopes, metrics = jax.jit(jax.grad(loss_fn, has_aux=True))(params, patch(8), prompts)
    assert ('loss_text' in metrics) == (rate > 0)
    norms.append(float(optax.tree.norm(slopes['text'])))
    assert optax.tree.norm(slopes['model']) > 0
  assert norms[0] == 0 < norms[1]
