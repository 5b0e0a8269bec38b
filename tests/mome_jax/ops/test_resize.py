"""Pooling and interpolation against PyTorch and their plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.ops import resize
from tests.mome_jax.ops.against import assert_same, from_torch, to_torch

RNG = np.random.default_rng(0)


def test_max_pool_and_its_gradient():
  x = np.maximum(RNG.normal(size=(2, 4, 6, 8, 3)), 0).astype(np.float32)  # many equal values
  dy = RNG.normal(size=(2, 2, 3, 4, 3)).astype(np.float32)
  tx = to_torch(x).requires_grad_()
  expected = torch.nn.functional.max_pool3d(tx, 2)
  y, pull = jax.vjp(resize.max_pool, x)
  np.testing.assert_array_equal(y, from_torch(expected))
  (gradient,) = torch.autograd.grad(expected, tx, to_torch(dy))
  np.testing.assert_array_equal(pull(jnp.asarray(dy))[0], from_torch(gradient))
  assert_same(resize.max_pool_pairs, resize.max_pool_plain, x, atol=0)


def test_mean_pool():
  x = RNG.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
  expected = torch.nn.functional.avg_pool3d(to_torch(x), 2)
  np.testing.assert_allclose(resize.mean_pool(jnp.asarray(x)), from_torch(expected), atol=1e-6)


@pytest.mark.parametrize('factor', [1, 2, 4, 8])
def test_upsample_is_trilinear_with_half_pixel_centres(factor):
  x = RNG.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(x), scale_factor=factor, mode='trilinear', align_corners=False
  )
  np.testing.assert_allclose(resize.upsample(jnp.asarray(x), factor), expected, atol=1e-5)
  forms = resize.upsample, resize.upsample_plain
  fast, plain = (lambda x, f=f: f(x, factor) for f in forms)
  assert_same(fast, plain, x)


@pytest.mark.parametrize('factor', [2, 3, 4, 8])
def test_upsampling_by_products_is_the_plain_one(factor):
  x = RNG.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
  fast, plain = resize.upsample_products, resize.upsample_plain
  assert_same(lambda x: fast(x, factor), lambda x: plain(x, factor), x)


def test_products_of_bfloat16_are_rounded_behind_each_axis_only():
  x = jnp.asarray(RNG.normal(size=(1, 2, 3, 4, 5)), jnp.bfloat16)
  exact = resize.upsample_plain(x.astype(jnp.float32), 4)
  y = resize.upsample_products(x, 4)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=3 * 2**-9 * np.abs(exact).max())
