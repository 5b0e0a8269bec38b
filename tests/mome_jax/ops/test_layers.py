"""Layers against PyTorch, which nobody here wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.ops import conv3d, layers

RNG = np.random.default_rng(0)


def to_torch(x):
  """(B, D, H, W, C) -> (B, C, D, H, W)."""
  return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def from_torch(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parametrize('lowering', [conv3d._conv3d_planes, conv3d._conv3d_native])
@pytest.mark.parametrize(
  'shape',
  [
    (2, 8, 5, 7, 3, 4),  # (B, D, H, W, C, C_out): four planes at a time
    (2, 6, 5, 7, 3, 4),  # two
    (1, 5, 4, 6, 8, 4),  # one
    (1, 2, 3, 2, 6, 32),  # few voxels, many channels
  ],
)
def test_conv3d_and_its_gradients(lowering, shape):
  *shape, features = shape
  x = RNG.normal(size=shape).astype(np.float32)
  kernel = RNG.normal(size=(3, 3, 3, shape[-1], features)).astype(np.float32)
  weight = RNG.normal(size=(*shape[:-1], features)).astype(np.float32)
  loss, grads = jax.value_and_grad(lambda x, k: (lowering(x, k) * weight).sum(), (0, 1))(x, kernel)

  tx = to_torch(x).requires_grad_()
  tk = torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy()).requires_grad_()
  expected = (torch.nn.functional.conv3d(tx, tk, padding=1) * to_torch(weight)).sum()
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=2e-5, atol=1e-3)
  np.testing.assert_allclose(grads[0], from_torch(tx.grad), atol=3e-5)
  expected_kernel = tk.grad.numpy().transpose(2, 3, 4, 1, 0)
  np.testing.assert_allclose(grads[1], expected_kernel, atol=1e-4)


def test_conv3d_of_size_one_is_a_matrix_product():
  x = RNG.normal(size=(1, 3, 4, 5, 6)).astype(np.float32)
  kernel = RNG.normal(size=(1, 1, 1, 6, 2)).astype(np.float32)
  expected = np.einsum('bdhwc,co->bdhwo', x, kernel[0, 0, 0])
  np.testing.assert_allclose(conv3d.conv3d(jnp.asarray(x), kernel), expected, atol=1e-5)


@pytest.mark.parametrize('halve', [False, True])
def test_convolutions_of_bfloat16_are_rounded_once(halve):
  x = jnp.asarray(RNG.normal(size=(1, 4, 4, 4, 8)), jnp.bfloat16)
  kernel = jnp.asarray(RNG.normal(size=(3, 3, 3, 8, 8)), jnp.bfloat16)
  native = conv3d._conv3d_halving_native if halve else conv3d._conv3d_native
  exact = native(x.astype(jnp.float32), kernel.astype(jnp.float32))
  y = (conv3d.conv3d_halving if halve else conv3d.conv3d)(x, kernel)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


def test_upconv_is_the_transposed_convolution():
  x = RNG.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
  module = layers.UpConv3D(4)
  variables = module.init(jax.random.key(0), x)
  kernel = np.asarray(variables['params']['kernel'])
  bias = RNG.normal(size=4).astype(np.float32)
  y = module.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  expected = torch.nn.functional.conv_transpose3d(
    to_torch(x),
    torch.from_numpy(kernel.transpose(3, 4, 0, 1, 2).copy()),
    torch.from_numpy(bias),
    stride=2,
  )
  np.testing.assert_allclose(y, from_torch(expected), atol=1e-5)
  np.testing.assert_allclose(conv3d._conv3d_doubling_native(x, kernel) + bias, y, atol=1e-5)


@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('channels', [8, 48])
def test_norms_and_their_gradients(per_channel, channels):
  x = (3 + 2 * RNG.normal(size=(2, 4, 5, 6, channels))).astype(np.float32)
  scale, bias = RNG.normal(size=(2, channels)).astype(np.float32)
  dy = RNG.normal(size=x.shape).astype(np.float32)
  module = layers.GroupNorm(per_channel=per_channel)
  norm = lambda x, scale, bias: module.apply({'params': {'scale': scale, 'bias': bias}}, x)
  y, pull = jax.vjp(norm, x, scale, bias)
  inputs = [a.requires_grad_() for a in (to_torch(x), *map(torch.tensor, (scale, bias)))]
  groups = channels if per_channel else {8: 8, 48: 16}[channels]
  expected = torch.nn.functional.group_norm(inputs[0], groups, *inputs[1:], 1e-5)
  np.testing.assert_allclose(y, from_torch(expected), atol=2e-5)
  gradients = torch.autograd.grad(expected, inputs, to_torch(dy))
  by_x, *by_parameters = pull(jnp.asarray(dy))
  np.testing.assert_allclose(by_x, from_torch(gradients[0]), atol=2e-5)
  for ours, theirs in zip(by_parameters, gradients[1:], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('name', ['layer norm', 'dense'])
def test_layers_over_channels_and_their_gradients(name):
  rng = np.random.default_rng(5)
  width, features = 6, 4
  x = rng.normal(2.0, 3.0, (2, 3, 4, 5, width)).astype(np.float32)
  shape = (width, features) if name == 'dense' else (width,)
  kernel = rng.normal(size=shape).astype(np.float32)
  bias = rng.normal(size=shape[-1:]).astype(np.float32)
  dy = rng.normal(size=(*x.shape[:-1], shape[-1])).astype(np.float32)
  module = layers.Dense(features) if name == 'dense' else layers.LayerNorm()
  first = 'kernel' if name == 'dense' else 'scale'
  y, pull = jax.vjp(
    lambda x, k, b: module.apply({'params': {first: k, 'bias': b}}, x), x, kernel, bias
  )

  inputs = [torch.tensor(a, requires_grad=True) for a in (x, kernel, bias)]
  if name == 'dense':
    expected = torch.nn.functional.linear(inputs[0], inputs[1].T, inputs[2])
  else:
    expected = torch.nn.functional.layer_norm(inputs[0], shape, *inputs[1:], layers.EPSILON)
  np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
  gradients = torch.autograd.grad(expected, inputs, torch.tensor(dy))
  for ours, theirs in zip(pull(jnp.asarray(dy)), gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_norm_of_a_large_offset_keeps_precision():
  x = (1e4 + RNG.normal(size=(1, 8, 8, 8, 2))).astype(np.float32)
  module = layers.GroupNorm(per_channel=True)
  y = module.apply({'params': {'scale': np.ones(2), 'bias': np.zeros(2)}}, x)
  np.testing.assert_allclose(np.std(y, (0, 1, 2, 3)), 1.0, rtol=1e-2)


def test_max_pool_and_its_gradient():
  x = np.maximum(RNG.normal(size=(2, 4, 6, 8, 3)), 0).astype(np.float32)  # many equal values
  dy = RNG.normal(size=(2, 2, 3, 4, 3)).astype(np.float32)
  tx = to_torch(x).requires_grad_()
  expected = torch.nn.functional.max_pool3d(tx, 2)
  y, pull = jax.vjp(layers.max_pool, x)
  np.testing.assert_array_equal(y, from_torch(expected))
  (gradient,) = torch.autograd.grad(expected, tx, to_torch(dy))
  np.testing.assert_array_equal(pull(jnp.asarray(dy))[0], from_torch(gradient))


@pytest.mark.parametrize('factor', [1, 2, 4, 8])
def test_upsample_is_trilinear_with_half_pixel_centres(factor):
  x = RNG.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(x), scale_factor=factor, mode='trilinear', align_corners=False
  )
  np.testing.assert_allclose(layers.upsample(jnp.asarray(x), factor), expected, atol=1e-5)
  along = [layers._upsample_rows(x, factor), layers._upsample_axis(jnp.asarray(x), factor, 4)]
  np.testing.assert_allclose(*along, atol=1e-6)  # the CPU's and the others'


@pytest.mark.parametrize('lowering', [conv3d._conv3d_halving_planes, conv3d._conv3d_halving_native])
def test_halving_convolution_and_its_gradients(lowering):
  x = RNG.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
  kernel = RNG.normal(size=(3, 3, 3, 3, 4)).astype(np.float32)
  weight = RNG.normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
  loss, grads = jax.value_and_grad(lambda x, k: (lowering(x, k) * weight).sum(), (0, 1))(x, kernel)
  tx = to_torch(x).requires_grad_()
  tk = torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy()).requires_grad_()
  expected = torch.nn.functional.conv3d(tx, tk, stride=2, padding=1)
  (expected * to_torch(weight)).sum().backward()
  np.testing.assert_allclose(lowering(x, kernel), from_torch(expected), atol=3e-5)
  np.testing.assert_allclose(grads[0], from_torch(tx.grad), atol=3e-5)
  np.testing.assert_allclose(grads[1], tk.grad.numpy().transpose(2, 3, 4, 1, 0), atol=1e-4)


def test_blocked_convolution_is_the_plain_one():
  x = RNG.normal(size=(2, 4, 6, 8, 2)).astype(np.float32)
  kernel = RNG.normal(size=(3, 3, 3, 2, 5)).astype(np.float32)
  expected = conv3d._conv3d_native(x, kernel)
  np.testing.assert_allclose(conv3d.conv3d_blocked(x, kernel), expected, atol=2e-5)


def test_down_convolution():
  x = RNG.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
  kernel = RNG.normal(size=(2, 2, 2, 3, 5)).astype(np.float32)
  bias = RNG.normal(size=5).astype(np.float32)
  y = layers.DownConv3D(5).apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  expected = torch.nn.functional.conv3d(
    to_torch(x),
    torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy()),
    torch.from_numpy(bias),
    stride=2,
  )
  np.testing.assert_allclose(y, from_torch(expected), atol=1e-5)


def test_mean_pool():
  x = RNG.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
  expected = torch.nn.functional.avg_pool3d(to_torch(x), 2)
  np.testing.assert_allclose(layers.mean_pool(jnp.asarray(x)), from_torch(expected), atol=1e-6)
