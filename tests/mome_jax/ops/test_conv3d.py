"""3D convolutions against PyTorch, and the forms of a CPU and a TPU against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.ops import conv3d, conv3d_cpu, conv3d_tpu
from tests.mome_jax.ops.against import assert_same, from_torch, to_torch

RNG = np.random.default_rng(0)


SHAPES = (
  (2, 8, 5, 7, 3, 4),  # (B, D, H, W, C, C_out): four planes at a time
  (2, 6, 5, 7, 3, 4),  # two
  (1, 5, 4, 6, 8, 4),  # one
  (1, 2, 3, 2, 6, 32),  # few voxels, many channels
)


@pytest.mark.parametrize('lowering', [conv3d_cpu.conv3d, conv3d_tpu.conv3d, conv3d.conv3d_plain])
@pytest.mark.parametrize('shape', SHAPES)
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


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_the_convolution_of_a_cpu_is_the_plain_one(shape, dtype):
  *shape, features = shape
  x = jnp.asarray(RNG.normal(size=shape), dtype)
  kernel = jnp.asarray(RNG.normal(size=(3, 3, 3, shape[-1], features)), dtype)
  atol = 1e-5 if dtype == np.float32 else 2**-7
  assert_same(conv3d_cpu.conv3d, conv3d.conv3d_plain, x, kernel, atol=atol)
  assert_same(conv3d.conv3d, conv3d.conv3d_plain, x, kernel, atol=atol)


@pytest.mark.parametrize('size', [3, 5])
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_the_convolution_of_a_tpu_is_the_plain_one(size, dtype):
  x = jnp.asarray(RNG.normal(size=(2, 4, 5, 6, 3)), dtype)
  kernel = jnp.asarray(RNG.normal(size=(size, size, size, 3, 4)), dtype)
  atol = 1e-5 if dtype == np.float32 else 2**-7
  assert_same(conv3d_tpu.conv3d, conv3d.conv3d_plain, x, kernel, atol=atol)


def test_conv3d_of_size_one_is_a_matrix_product():
  x = RNG.normal(size=(1, 3, 4, 5, 6)).astype(np.float32)
  kernel = RNG.normal(size=(1, 1, 1, 6, 2)).astype(np.float32)
  expected = np.einsum('bdhwc,co->bdhwo', x, kernel[0, 0, 0])
  np.testing.assert_allclose(conv3d.conv3d(jnp.asarray(x), kernel), expected, atol=1e-5)


@pytest.mark.parametrize('halve', [False, True])
def test_convolutions_of_bfloat16_are_rounded_once(halve):
  x = jnp.asarray(RNG.normal(size=(1, 4, 4, 4, 8)), jnp.bfloat16)
  kernel = jnp.asarray(RNG.normal(size=(3, 3, 3, 8, 8)), jnp.bfloat16)
  native = conv3d.conv3d_halving_plain if halve else conv3d.conv3d_plain
  exact = native(x.astype(jnp.float32), kernel.astype(jnp.float32))
  y = (conv3d.conv3d_halving if halve else conv3d.conv3d)(x, kernel)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize('lowering', [conv3d_cpu.conv3d_halving, conv3d.conv3d_halving_plain])
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


def test_the_halving_convolution_of_a_cpu_is_the_plain_one():
  x = RNG.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
  kernel = RNG.normal(size=(3, 3, 3, 3, 4)).astype(np.float32)
  for fast in (conv3d_cpu.conv3d_halving, conv3d.conv3d_halving):
    assert_same(fast, conv3d.conv3d_halving_plain, x, kernel)


def test_upconv_is_the_transposed_convolution():
  x = RNG.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
  module = conv3d.UpConv3D(4)
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
  np.testing.assert_allclose(conv3d.conv3d_doubling_plain(x, kernel) + bias, y, atol=1e-5)


def test_the_doubling_convolution_of_a_cpu_is_the_plain_one():
  x = RNG.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
  kernel = RNG.normal(size=(2, 2, 2, 6, 4)).astype(np.float32)
  for fast in (conv3d_cpu.conv3d_doubling, conv3d.conv3d_doubling):
    assert_same(fast, conv3d.conv3d_doubling_plain, x, kernel)


def test_down_convolution():
  x = RNG.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
  kernel = RNG.normal(size=(2, 2, 2, 3, 5)).astype(np.float32)
  bias = RNG.normal(size=5).astype(np.float32)
  y = conv3d.DownConv3D(5).apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  expected = torch.nn.functional.conv3d(
    to_torch(x),
    torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy()),
    torch.from_numpy(bias),
    stride=2,
  )
  np.testing.assert_allclose(y, from_torch(expected), atol=1e-5)
