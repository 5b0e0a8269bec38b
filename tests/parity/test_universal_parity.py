"""The CLIP-Driven Universal Model from its published names: U-Net in PyTorch, head in numpy."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mome_jax import weights
from mome_jax.models import build_model
from mome_jax.weights import segmentation
from tests.mome_jax.weights import layouts

CLASSES = 3


def torch_unet(state, x):
  """Finest decoder features and bottleneck; x (B, 1, D, H, W)."""
  state = {name: torch.from_numpy(value) for name, value in state.items()}

  def block(x, name):
    for i in (0, 1):
      conv, norm = f'backbone.{name}.ops.{i}.conv1', f'backbone.{name}.ops.{i}.bn1'
      x = F.conv3d(x, state[f'{conv}.weight'], state[f'{conv}.bias'], padding=1)
      affine = state[f'{norm}.weight'], state[f'{norm}.bias']
      x = F.relu(F.batch_norm(x, None, None, *affine, training=True))
    return x

  skips = [block(x, 'down_tr64')]
  for width in (128, 256, 512):
    skips.append(block(F.max_pool3d(skips[-1], 2), f'down_tr{width}'))
  x = bottleneck = skips.pop()
  for width in (256, 128, 64):
    conv = f'backbone.up_tr{width}.up_conv'
    x = F.conv_transpose3d(x, state[f'{conv}.weight'], state[f'{conv}.bias'], stride=2)
    x = block(torch.cat([x, skips.pop()], 1), f'up_tr{width}')
  return x.numpy()[0], bottleneck.numpy()[0]


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
  with torch.no_grad():
    features, bottleneck = torch_unet(state, torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
  expected = np.moveaxis(numpy_head(state, features, bottleneck), 0, -1)
  parallel = {f'module.{name}': value for name, value in state.items()}
  variables = weights.convert('universal_unet', parallel)
  config = segmentation.universal_unet(state).config
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
