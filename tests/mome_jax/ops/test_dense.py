"""The dense layer against PyTorch, and sums and products against their plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.ops import dense
from tests.mome_jax.ops.against import assert_same

RNG = np.random.default_rng(0)


def test_the_dense_layer_and_its_gradients():
  rng = np.random.default_rng(5)
  x = rng.normal(2.0, 3.0, (2, 3, 4, 5, 6)).astype(np.float32)
  kernel, bias = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
  dy = rng.normal(size=(2, 3, 4, 5, 4)).astype(np.float32)
  apply = lambda x, k, b: dense.Dense(4).apply({'params': {'kernel': k, 'bias': b}}, x)
  y, pull = jax.vjp(apply, x, kernel, bias)
  inputs = [torch.tensor(a, requires_grad=True) for a in (x, kernel, bias)]
  expected = torch.nn.functional.linear(inputs[0], inputs[1].T, inputs[2])
  np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
  gradients = torch.autograd.grad(expected, inputs, torch.tensor(dy))
  for ours, theirs in zip(pull(jnp.asarray(dy)), gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('shape', [(2, 3, 4, 5, 6), (7, 6)])
def test_the_product_and_its_gradients_are_the_plain_ones(shape):
  x = RNG.normal(size=shape).astype(np.float32)
  kernel = RNG.normal(size=(6, 4)).astype(np.float32)
  assert_same(dense.matmul, dense.matmul_plain, x, kernel)


def test_sums_over_space_are_the_plain_ones():
  x = RNG.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
  np.testing.assert_allclose(dense.spatial_sum_plain(x), x.sum((1, 2, 3)), atol=1e-4)
  for fast in (dense.spatial_sum, dense._sum_rows):
    assert_same(fast, dense.spatial_sum_plain, x)


def test_the_gradient_of_a_broadcast_is_the_plain_one():
  vector, shape = RNG.normal(size=6).astype(np.float32), (2, 3, 4, 5, 6)
  fast, plain = (lambda v, f=f: f(v, shape) for f in (dense.broadcast, dense.broadcast_plain))
  assert_same(fast, plain, vector)
