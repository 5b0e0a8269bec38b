"""A batch in parts teaches a whole network what the batch teaches: heads, router, text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.anatomy import IGNORE_CODE, OUTSIDE_CODE, TEMPLATE
from mome_jax.configs import demo
from mome_jax.models import build_model, mome
from mome_jax.text import prompt_inputs
from mome_jax.text.t5 import build_text_encoder
from mome_jax.text.tokenizer import DEFAULT_MODEL, Tokenizer
from mome_jax.training import state, steps

pytestmark = pytest.mark.slow  # minutes, all of them for the compiler

CLASSES = ('liver', 'left kidney', 'aorta')
CASES = 4  # of 16^3 voxels


def patches():
  """Patches that label different numbers of classes; some hold none of them."""
  rng = np.random.default_rng(0)
  codes = [0, *(TEMPLATE.get(name).index for name in CLASSES), IGNORE_CODE, OUTSIDE_CODE]
  blocks = rng.choice(codes, (CASES, 4, 4, 4), p=(0.4, 0.2, 0.15, 0.1, 0.05, 0.1))
  label = blocks.repeat(4, 1).repeat(4, 2).repeat(4, 3)
  label[3] = 0
  image = 0.5 + 0.1 * (label[..., None] > 0) + rng.normal(0, 0.1, (*label.shape, 2))
  return {
    'image': image,
    'label': label.astype(np.uint8),
    'supervised': np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [1, 1, 0]], bool),
    'absent': np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], bool),
    'frame': np.tile(np.float32([0, 0, 1, 0]), (CASES, 1)),
    'slice_range': np.full((CASES, 3, 2), (-np.inf, np.inf), np.float32),
  }


@pytest.fixture(scope='module', autouse=True)
def double():
  """Numbers so exact that only a wrong sum differs: in float32 rounding moves slopes by 3e-4."""
  with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
    patch.setattr(mome, 'DTYPES', ('float64',))
    yield


@pytest.fixture(scope='module')
def learning():
  """gradients(parts) -> (gradients, metrics), of a network as the demo has it, but for its size."""
  config = demo.get_config()
  config.classes = CLASSES
  config.model.backbone.size = 'tiny'
  config.model.class_chunk = len(CLASSES)
  config.model.dtype = 'float64'
  config.text.num_layers = 1
  model, encoder = build_model(config.model), build_text_encoder(config.text)
  encode = prompt_inputs.joint(Tokenizer(DEFAULT_MODEL), 16)
  prompts = {
    'sampled': encode(['a CT of a liver', 'the left kidney', 'abdominal aorta']),
    'default': encode(CLASSES),
    'negative': encode(['the tongue', 'A CT of the right lens']),
  }
  key = jax.random.key(0, impl='rbg')
  params = jax.jit(lambda: state.init_params(config, model, encoder, key))()
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
  table = jnp.asarray(TEMPLATE.code_table(CLASSES))

  def gradients(parts):
    loss_fn = steps.make_loss_fn(model, encoder, table, config.train)
    fn = steps._gradient_fn(loss_fn, steps.make_count_fn(table), parts)
    return jax.jit(fn)(params, patches(), prompts)

  return gradients


def test_gradients_of_parts_add_up_to_those_of_the_batch(learning):
  whole, metrics = learning(1)
  parts, by_parts = learning(2)
  slopes = jax.tree.leaves_with_path(whole)
  size = np.sqrt(sum(np.sum(np.square(leaf)) for _, leaf in slopes))
  assert size > 1
  for (path, leaf), other in zip(slopes, jax.tree.leaves(parts), strict=True):
    off = np.linalg.norm(np.ravel(other - leaf))
    # A bias before a norm has none: what is there is rounding.
    assert off <= 1e-5 * np.linalg.norm(np.ravel(leaf)) + 1e-12 * size, path
  for name, value in metrics.items():
    np.testing.assert_allclose(by_parts[name], value, rtol=1e-5, err_msg=name)
