"""The CLIP-Driven Universal Model from its published names: U-Net in PyTorch, head in numpy."""

import jax
import numpy as np
import pytest
import torch

from mome_jax import weights
from mome_jax.models import build_model
from mome_jax.weights import networks
from tests.helpers import published_unet
from tests.mome_jax.weights import layouts

CLASSES = 3


def numpy_head(state, features, bottleneck):
  """Logits (K, D, H, W) from the decoder's features (C, D, H, W), by the formula."""

  def group_norm(x, name):
    groups = x.reshape(16, -1)
    mean, var = groups.mean(1, keepdims=True), groups.var(1, keepdims=True)
    x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    scale, shift = (state[f'{name}.{part}'].reshape(-1, 1, 1, 1) for part in ('weight', 'bias'))
    return x * scale + shift

  def linear(x, name):
    weight = state[f'{name}.weight'].reshape(len(state[f'{name}.weight']), -1)
    return np.tensordot(weight, x, 1) + state[f'{name}.bias'].reshape(-1, *[1] * (x.ndim - 1))

  pooled = np.maximum(group_norm(bottleneck, 'GAP.0'), 0).mean((1, 2, 3))
  context = linear(pooled, 'GAP.3')
  z = linear(np.maximum(group_norm(features, 'precls_conv.0'), 0), 'precls_conv.2')
  logits = []
  for vector in state['organ_embedding']:
    text = np.maximum(linear(vector, 'text_to_vision'), 0)
    theta = linear(np.concatenate([context, text]), 'controller')
    w1, w2, w3, b1, b2, b3 = np.split(theta, [64, 128, 136, 144, 152])
    column = lambda b: b.reshape(-1, 1, 1, 1)
    x = np.maximum(np.tensordot(w1.reshape(8, 8), z, 1) + column(b1), 0)
    x = np.maximum(np.tensordot(w2.reshape(8, 8), x, 1) + column(b2), 0)
    logits.append(np.tensordot(w3, x, 1) + b3)
  return np.stack(logits)


def test_the_baseline_is_the_published_network():
  state = layouts.unet_state(CLASSES)
  image = np.random.default_rng(1).uniform(size=(1, 16, 24, 16, 1)).astype(np.float32)
  tensors = {name: torch.from_numpy(value) for name, value in state.items()}
  with torch.no_grad():
    pyramid = published_unet.pyramid(tensors, torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
  features, bottleneck = (x.numpy()[0] for x in (pyramid[0], pyramid[-1]))
  expected = np.moveaxis(numpy_head(state, features, bottleneck), 0, -1)
  parallel = {f'module.{name}': value for name, value in state.items()}
  variables = weights.convert('universal_unet', parallel)
  config = networks.universal_unet(state).config
  assert len(config.classes) == CLASSES
  config.model.dtype = 'float32'
  model = build_model(config.model)
  logits, _ = jax.jit(model.apply)(variables, image, state['organ_embedding'])
  np.testing.assert_allclose(logits[0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    ({'controller.bias': None}, r'missing: controller\.bias, for heads/controller/bias \(153,\)'),
    ({'extra.weight': (3,)}, r'unused: extra\.weight \(3,\)'),
    ({'GAP.3.weight': (256, 768, 1, 1, 1)}, r'shape: GAP\.3\.weight is \(256, 768, 1, 1, 1\)'),
    ({'backbone.down_tr64.ops.2.conv1.bias': (3,)}, r'unused: backbone\.down_tr64\.ops\.2'),
  ],
)
def test_a_checkpoint_that_differs_is_refused(change, problem):
  state = layouts.unet_state(CLASSES)
  for name, shape in change.items():
    state.pop(name, None)
    if shape:
      state[name] = np.zeros(shape, np.float32)
  with pytest.raises(weights.WeightsError, match=rf'\(1 problems\):\n  {problem}'):
    weights.convert('universal_unet', state)
