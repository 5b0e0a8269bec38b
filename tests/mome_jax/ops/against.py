"""What operations are compared with: PyTorch, which nobody here wrote, and their plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import torch


def to_torch(x):
  """(B, D, H, W, C) -> (B, C, D, H, W)."""
  return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def from_torch(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_same(fast, plain, *inputs, atol=1e-5):
  """The same values and gradients by every input, up to `atol` of the largest of each."""
  results = []
  for operation in (fast, plain):
    y, pull = jax.vjp(operation, *map(jnp.asarray, inputs))
    towards = np.random.default_rng(9).normal(size=y.shape)
    results.append((y, *pull(jnp.asarray(towards, y.dtype))))
  for ours, expected in zip(*results, strict=True):
    assert ours.dtype == expected.dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
      ours.astype(jnp.float32), expected.astype(jnp.float32), atol=atol * scale
    )
