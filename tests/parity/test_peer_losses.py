"""The loss that trains the peers in PyTorch is ours, gradients included."""

import jax
import numpy as np
import pytest
import torch

from mome_jax.training import losses
from tests.benchmarks.peers import losses as peer_losses


def batch():
  """Two patches of three classes: one unsupervised, one contoured on a few slices, one absent."""
  rng = np.random.default_rng(0)
  shape = (4, 5, 6)
  logits = rng.normal(size=(2, 3, *shape)).astype(np.float32)
  targets = rng.uniform(size=logits.shape) < 0.3
  targets[0, 2] = False
  supervised = np.array([[True, True, True], [True, False, True]])
  frame = np.array([[0.1, -0.2, 3.0, 5.0], [0.0, 0.0, 2.5, 0.0]], np.float32)
  slice_range = np.tile(np.array([-np.inf, np.inf], np.float32), (2, 3, 1))
  slice_range[0, 1] = 8.0, 14.5
  slice_range[1, 2] = 100.0, 200.0  # nothing of it in the patch
  return logits, targets, (shape, supervised, frame, slice_range)


def test_valid_voxels():
  _, _, (shape, *arrays) = batch()
  expected = losses.valid_voxels(shape, *arrays)
  got = peer_losses.valid_voxels(shape, *map(torch.from_numpy, arrays))
  np.testing.assert_array_equal(got, expected)
  assert 0 < expected[0, 1].sum() < expected[0, 1].size and not expected[1, 1:].any()


@pytest.mark.parametrize('log', [False, True])
@pytest.mark.parametrize('absent', [False, True])
def test_loss_and_gradient(log, absent):
  logits, targets, where = batch()
  targets &= not absent
  valid = losses.valid_voxels(*where)
  expected, gradient = jax.value_and_grad(
    lambda x: sum(losses.masked_bce_dice(x, targets, valid, log=log))
  )(logits)
  tensor = torch.from_numpy(logits).requires_grad_()
  masks = (torch.from_numpy(np.array(mask)) for mask in (targets, valid))
  loss = peer_losses.masked_bce_dice(tensor, *masks, log=log)
  loss.backward()
  np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)
  np.testing.assert_allclose(tensor.grad, gradient, rtol=1e-4, atol=1e-7)
  assert not tensor.grad[~torch.from_numpy(np.array(valid))].any()
