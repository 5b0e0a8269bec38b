"""Our Swin UNETR against MONAI's, weights random, through the conversion of its checkpoints."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from monai.networks.nets import swin_unetr as monai

from mome_jax import weights
from mome_jax.models.backbones import swin, swin_unetr

pytestmark = pytest.mark.usefixtures('soon')


@pytest.fixture(scope='module')
def theirs():
  torch.manual_seed(0)
  model = monai.SwinUNETR(in_channels=2, out_channels=3, feature_size=12, use_checkpoint=False)
  with torch.no_grad():  # as initialised, norms are 1 and position biases near 0
    for name, x in model.named_parameters():
      if 'norm' in name:
        x.add_(0.3 * torch.randn_like(x))
      elif 'relative_position_bias' in name:
        x.normal_(0, 1)
  return model.eval()


def outputs(model, image):
  """MONAI's decoder features, finest first, with the graph of their gradient."""
  maps = {}
  names = [f'decoder{i}' for i in range(1, 6)] + ['encoder10']
  hooks = [
    getattr(model, name).register_forward_hook(lambda _m, _x, y, name=name: maps.update({name: y}))
    for name in names
  ]
  model(image)
  for hook in hooks:
    hook.remove()
  return [maps[name] for name in names]


SIDES = (64, 32, 64)  # windows full and shifted, and clipped along one axis or along all


@pytest.fixture(scope='module')
def image():
  return np.random.default_rng(0).uniform(size=(1, *SIDES, 2))


def probe(shape):
  """What each feature counts in the scalar whose gradient is compared: (B, D, H, W, C) float64."""
  return np.random.default_rng(shape[1]).normal(size=shape) / np.prod(shape) ** 0.5


def run_theirs(model, image, dtype):
  """MONAI's pyramid and the image's gradient, channels last, computed in a torch dtype."""
  model = copy.deepcopy(model).to(dtype)
  tensor = torch.from_numpy(np.moveaxis(image, -1, 1).copy()).to(dtype).requires_grad_()
  pyramid = outputs(model, tensor)
  last = lambda x: np.moveaxis(x.detach().numpy(), 1, -1)
  scalar = sum(
    (y.movedim(1, -1) * torch.from_numpy(probe(last(y).shape)).to(dtype)).sum() for y in pyramid
  )
  scalar.backward()
  return [last(y) for y in pyramid], last(tensor.grad)


def run_ours(params, image, dtype):
  """Our pyramid and the image's gradient, computed in a dtype."""
  params, forward = ours(params, dtype)

  def loss(image):
    pyramid = forward(params, image)
    return sum((y * jnp.asarray(probe(y.shape), dtype)).sum() for y in pyramid), pyramid

  gradient, pyramid = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(image, dtype))
  return [np.asarray(y) for y in pyramid], np.asarray(gradient)


def ours(params, dtype):
  """Parameters in a dtype, and forward(parameters, image) of the network that computes in it."""
  model = swin_unetr.SwinUNETR(features=12, dtype=dtype)
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
  return params, lambda params, image: model.apply({'params': params}, image)


def largest_error(maps, expected):
  """Relative to the expected array's largest value."""
  assert maps.shape == expected.shape
  return np.abs(maps - expected).max() / np.abs(expected).max()


def test_pyramid_and_input_gradient(theirs, image):
  params = weights.convert('monai_swin_unetr', theirs.state_dict())['params']['backbone']
  exact, slope = run_theirs(theirs, image, torch.float64)
  with jax.enable_x64(True):
    pyramid, gradient = run_ours(params, image, jnp.float64)
  assert [y.shape[1] for y in pyramid] == [SIDES[0] >> level for level in range(6)]
  assert gradient.dtype == np.float64
  for y, expected in zip(pyramid, exact, strict=True):
    assert largest_error(y, expected) < 1e-9
  assert largest_error(gradient, slope) < 1e-9

  params, forward = ours(params, jnp.float32)
  pyramid = jax.jit(forward)(params, jnp.asarray(image, jnp.float32))
  for y, expected in zip(pyramid, exact, strict=True):
    assert largest_error(np.asarray(y), expected) < 1e-4


@pytest.mark.parametrize('grid', [(9, 7, 15), (3, 8, 14), (7, 7, 7)])
@pytest.mark.parametrize('shifted', [False, True])
def test_window_attention_at_odd_sizes(grid, shifted):
  torch.manual_seed(1)
  theirs = monai.SwinTransformerBlock(
    12, 3, (7, 7, 7), (3, 3, 3) if shifted else (0, 0, 0), norm_layer=torch.nn.LayerNorm
  ).eval()
  with torch.no_grad():
    theirs.attn.relative_position_bias_table.normal_(0, 1)
  x = np.random.default_rng(1).normal(size=(2, *grid, 12)).astype(np.float32)
  window, shift = monai.get_window_size(grid, (7, 7, 7), (3, 3, 3))
  padded = [-(-n // size) * size for n, size in zip(grid, window, strict=True)]
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x), monai.compute_mask(padded, window, shift, 'cpu'))
  state = {key: value.numpy() for key, value in theirs.state_dict().items()}
  names = {
    'norm_attention/scale': 'norm1.weight', 'norm_attention/bias': 'norm1.bias',
    'norm_mlp/scale': 'norm2.weight', 'norm_mlp/bias': 'norm2.bias',
    'attention/qkv/kernel': 'attn.qkv.weight', 'attention/qkv/bias': 'attn.qkv.bias',
    'attention/project/kernel': 'attn.proj.weight', 'attention/project/bias': 'attn.proj.bias',
    'attention/position_bias': 'attn.relative_position_bias_table',
    'mlp_in/kernel': 'mlp.linear1.weight', 'mlp_in/bias': 'mlp.linear1.bias',
    'mlp_out/kernel': 'mlp.linear2.weight', 'mlp_out/bias': 'mlp.linear2.bias',
  }  # fmt: skip
  params = {}
  for ours, name in names.items():
    *path, leaf = ours.split('/')
    node = params
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = state[name].T if leaf == 'kernel' else state[name]
  y = jax.jit(swin.Block(3, shifted).apply)({'params': params}, x)
  np.testing.assert_allclose(y, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize('order', swin.MERGING_ORDERS)
def test_patch_merging_at_odd_sizes(order):
  x = np.random.default_rng(2).normal(size=(1, 5, 4, 7, 3)).astype(np.float32)
  module = swin.PatchMerging(order)
  variables = module.init(jax.random.key(0), x)
  kernel = variables['params']['reduction']['kernel']
  y = module.apply(variables, x)
  assert y.shape == (1, 3, 2, 4, 6)
  if order == 'cum':
    # The first MONAI's slip, by hand: channels of the doubled neighbours are equal before the norm.
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0)))
    cells = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    joined = jnp.concatenate([padded[:, i::2, j::2, k::2] for i, j, k in cells], -1)
    joined = (joined - joined.mean(-1, keepdims=True)) / jnp.sqrt(
      joined.var(-1, keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(y, joined @ kernel, atol=1e-5)
    return
  kind = {'monai': monai.PatchMerging, 'monai_v2': monai.PatchMergingV2}[order]
  theirs = kind(3)
  with torch.no_grad():
    theirs.reduction.weight.copy_(torch.from_numpy(np.array(kernel).T.copy()))
    expected = theirs(torch.from_numpy(x))
  np.testing.assert_allclose(y, expected.numpy(), atol=1e-5)
