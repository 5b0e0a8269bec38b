"""Normalisations against PyTorch and their plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.ops import norm
from tests.mome_jax.ops.against import assert_same, from_torch, to_torch

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('channels', [8, 48])
def test_norms_and_their_gradients(per_channel, channels):
  x = (3 + 2 * RNG.normal(size=(2, 4, 5, 6, channels))).astype(np.float32)
  scale, bias = RNG.normal(size=(2, channels)).astype(np.float32)
  dy = RNG.normal(size=x.shape).astype(np.float32)
  module = norm.GroupNorm(per_channel=per_channel)
  normalise = lambda x, scale, bias: module.apply({'params': {'scale': scale, 'bias': bias}}, x)
  y, pull = jax.vjp(normalise, x, scale, bias)
  inputs = [a.requires_grad_() for a in (to_torch(x), *map(torch.tensor, (scale, bias)))]
  groups = channels if per_channel else {8: 8, 48: 16}[channels]
  expected = torch.nn.functional.group_norm(inputs[0], groups, *inputs[1:], 1e-5)
  np.testing.assert_allclose(y, from_torch(expected), atol=2e-5)
  gradients = torch.autograd.grad(expected, inputs, to_torch(dy))
  by_x, *by_parameters = pull(jnp.asarray(dy))
  np.testing.assert_allclose(by_x, from_torch(gradients[0]), atol=2e-5)
  for ours, theirs in zip(by_parameters, gradients[1:], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('groups', [1, 4, 8])
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_the_normalisation_and_its_gradients_are_the_plain_ones(groups, dtype):
  x = jnp.asarray(3 + 2 * RNG.normal(size=(2, 4, 5, 6, 8)), dtype)
  scale, bias = RNG.normal(size=(2, 8)).astype(np.float32)
  forms = norm.normalise, norm.normalise_plain
  fast, plain = (lambda x, s, b, f=f: f(x, s, b, groups, dtype) for f in forms)
  assert_same(fast, plain, x, scale, bias, atol=1e-5 if dtype == np.float32 else 2**-6)


def test_the_affine_map_of_a_normalisation():
  x = RNG.normal(3, 2, size=(2, 4, 5, 6, 8)).astype(np.float32)
  params = dict(zip(('scale', 'bias'), RNG.normal(size=(2, 8)).astype(np.float32), strict=True))
  module = norm.GroupNorm()
  multiplier, offset = module.apply({'params': params}, x, method='affine')
  place = lambda a: np.asarray(a)[:, None, None, None]
  y = module.apply({'params': params}, x)
  np.testing.assert_allclose(place(multiplier) * x + place(offset), y, atol=1e-5)


def test_the_layer_norm_and_its_gradients():
  rng = np.random.default_rng(5)
  x = rng.normal(2.0, 3.0, (2, 3, 4, 5, 6)).astype(np.float32)
  scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
  dy = rng.normal(size=x.shape).astype(np.float32)
  apply = lambda x, s, b: norm.LayerNorm().apply({'params': {'scale': s, 'bias': b}}, x)
  y, pull = jax.vjp(apply, x, scale, bias)
  inputs = [torch.tensor(a, requires_grad=True) for a in (x, scale, bias)]
  expected = torch.nn.functional.layer_norm(inputs[0], (6,), *inputs[1:], norm.EPSILON)
  np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
  gradients = torch.autograd.grad(expected, inputs, torch.tensor(dy))
  for ours, theirs in zip(pull(jnp.asarray(dy)), gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('kind', [norm.GroupNorm, norm.LayerNorm])
def test_what_hardly_varies_is_divided_by_the_epsilon_too(kind):
  """Of a variance of 1e-5 the root with 1e-5 beside it is 1.4 times the spread."""
  x = np.where(np.indices((2, 4, 6)).sum(0) % 2, 1, -1) * np.sqrt(1e-5)
  y = kind(learned=False).apply({}, x.astype(np.float32))
  np.testing.assert_allclose(y, x / np.sqrt(2e-5), rtol=1e-4)


def test_norm_of_a_large_offset_keeps_precision():
  x = (1e4 + RNG.normal(size=(1, 8, 8, 8, 2))).astype(np.float32)
  module = norm.GroupNorm(per_channel=True)
  y = module.apply({'params': {'scale': np.ones(2), 'bias': np.zeros(2)}}, x)
  np.testing.assert_allclose(np.std(y, (0, 1, 2, 3)), 1.0, rtol=1e-2)
