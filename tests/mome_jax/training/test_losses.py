"""Masked BCE + Dice: hand numbers, and gradients that partial labels must leave at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax.training import losses

pytestmark = pytest.mark.usefixtures('soon')

INF = np.inf


def case(batch=2, size=4, classes=3):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(batch, classes, size, size, size)).astype(np.float32)
  targets = rng.uniform(size=logits.shape) < 0.3
  return jnp.asarray(logits), jnp.asarray(targets)


def total(logits, targets, valid, log=False):
  return sum(losses.masked_bce_dice(logits, targets, valid, log=log))


def test_full_supervision_is_bce_and_soft_dice():
  logits, targets = case()
  bce, dice = losses.masked_bce_dice(logits, targets, jnp.ones_like(targets))
  expected = torch.nn.functional.binary_cross_entropy_with_logits(
    torch.from_numpy(np.array(logits)), torch.from_numpy(np.array(targets, np.float32))
  )
  np.testing.assert_allclose(bce, expected, rtol=1e-5)
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  overlap, both = (p * targets).sum((2, 3, 4)), (p + targets).sum((2, 3, 4))
  np.testing.assert_allclose(dice, (1 - (2 * overlap + 1) / (both + 1)).mean(), rtol=1e-5)


def test_perfect_and_empty_predictions():
  targets = jnp.zeros((1, 1, 2, 2, 2), bool).at[0, 0, 0].set(True)
  bce, dice = losses.masked_bce_dice(
    jnp.where(targets, 50.0, -50.0), targets, jnp.ones_like(targets)
  )
  np.testing.assert_allclose([bce, dice], 0, atol=1e-6)
  # Nothing predicted, 4 voxels missed: Dice loss 1 - 1 / (4 + 1).
  _, dice = losses.masked_bce_dice(jnp.full(targets.shape, -50.0), targets, jnp.ones_like(targets))
  np.testing.assert_allclose(dice, 0.8, rtol=1e-6)


def test_an_absent_class_counts_in_bce_only():
  logits, targets = case(batch=1, classes=2)
  absent = targets.at[:, 1].set(False)
  bce, dice = losses.masked_bce_dice(logits, absent, jnp.ones_like(targets))
  alone = losses.masked_bce_dice(logits[:, :1], targets[:, :1], jnp.ones((1, 1, 4, 4, 4)))
  np.testing.assert_allclose(dice, alone[1], rtol=1e-6)
  empty = np.log1p(np.exp(np.asarray(logits[:, 1]))).mean()
  np.testing.assert_allclose(bce, (alone[0] + empty) / 2, rtol=1e-5)


def test_log_dice():
  logits, targets = case()
  _, dice = losses.masked_bce_dice(logits, targets, jnp.ones_like(targets), log=True)
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  overlap, both = (p * targets).sum((2, 3, 4)), (p + targets).sum((2, 3, 4))
  np.testing.assert_allclose(dice, -np.log(2 * overlap / both).mean(), rtol=1e-4)


@pytest.mark.parametrize('probability', [1e-1, 1e-2, 1e-4, 1e-6])
def test_log_dice_pulls_up_a_small_class_however_low_it_lies(probability):
  targets = jnp.zeros((1, 1, 16, 16, 16), bool).at[0, 0, :2, :2, 0].set(True)
  logits = jnp.where(targets, jnp.log(probability / (1 - probability)), -30.0)
  valid = jnp.ones_like(targets)
  slope = lambda log: jax.grad(lambda x: losses.masked_bce_dice(x, targets, valid, log=log)[1])(
    logits
  ).sum()
  np.testing.assert_allclose(slope(True), -1, atol=0.2)
  assert abs(slope(False)) < 2 * probability


@pytest.mark.parametrize('spacing', [0.7, 0.8, 1.2, 3.0, 3.3])
def test_the_end_slices_of_a_contoured_range_are_taught(spacing):
  """Slices 110 to 150, of a patch that begins at each of the slices 0 to 110."""
  starts = np.arange(111)
  frame = np.zeros((len(starts), 4), np.float32)
  frame[:, 2:] = np.stack([np.full(len(starts), spacing), starts * spacing], 1)
  limits = np.array([110 * spacing, 150 * spacing], np.float32)
  ranges = np.broadcast_to(limits, (len(starts), 1, 2))
  valid = losses.valid_voxels((1, 1, 160), np.ones((len(starts), 1), bool), frame, ranges)
  slices = starts[:, None] + np.arange(160)
  np.testing.assert_array_equal(valid[:, 0, 0, 0], (slices >= 110) & (slices <= 150))


def test_prompt_contrast_on_hand_numbers():
  default = jnp.eye(2)
  np.testing.assert_allclose(
    losses.prompt_contrast(3 * default, default, 1.0), np.log1p(np.exp(-1)), rtol=1e-5
  )
  parallel = jnp.ones((2, 2))
  np.testing.assert_allclose(losses.prompt_contrast(parallel, parallel), np.log(2), rtol=1e-6)
  # Each sampled prompt is looked for among the default ones, whose cosines to it are 1 and 0.6, at
  # the temperature of training.
  sampled, default = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[2.0, 0.0], [3.0, 4.0]])
  expected = (np.log1p(np.exp(6 - 10)) + np.log1p(np.exp(10 - 6))) / 2
  np.testing.assert_allclose(losses.prompt_contrast(sampled, default), expected, rtol=1e-5)


@pytest.mark.parametrize('log', [False, True])
def test_unsupervised_classes_get_exactly_no_gradient(log):
  logits, targets = case()
  supervised = jnp.array([[True, False, True], [False, False, True]])
  valid = jnp.broadcast_to(supervised[..., None, None, None], targets.shape)
  loss, grad = jax.value_and_grad(total)(logits, targets, valid, log)
  touched = np.abs(grad).max((2, 3, 4)) > 0
  np.testing.assert_array_equal(touched, supervised)
  other = jnp.where(valid, logits, 1e6)  # whatever the model says there
  np.testing.assert_array_equal(total(other, targets, valid, log), loss)
  nan = jnp.where(valid, logits, jnp.nan)
  np.testing.assert_array_equal(total(nan, targets, valid, log), loss)
  assert (np.asarray(jax.grad(total)(nan, targets, valid, log))[~np.asarray(valid)] == 0).all()


def test_the_mean_is_over_supervised_pairs():
  logits, targets = case(batch=2, classes=2)
  valid = jnp.ones_like(targets).at[1, 1].set(False)
  pairs = [(0, 0), (0, 1), (1, 0)]
  each = [
    total(
      logits[b : b + 1, k : k + 1],
      targets[b : b + 1, k : k + 1],
      jnp.ones((1, 1, 4, 4, 4)),
    )
    for b, k in pairs
  ]
  np.testing.assert_allclose(total(logits, targets, valid), np.mean(each), rtol=1e-5)


@pytest.mark.parametrize('log', [False, True])
def test_nothing_supervised_is_zero(log):
  logits, targets = case()
  loss, grad = jax.value_and_grad(total)(logits, targets, jnp.zeros_like(targets), log)
  assert loss == 0
  assert (np.asarray(grad) == 0).all()


def test_slice_range_limits_loss_and_gradient():
  logits, targets = case(batch=1, classes=2)
  supervised = jnp.ones((1, 2), bool)
  frame = jnp.array([[0.0, 0.0, 3.0, 10.0]])  # axis 2 climbs 3 mm a voxel from 10 mm
  slice_range = jnp.array([[[13.0, 16.5], [-INF, INF]]])
  valid = losses.valid_voxels((4, 4, 4), supervised, frame, slice_range)
  np.testing.assert_array_equal(valid[0, 0, 0, 0], [False, True, True, False])
  assert valid[:, 1].all()
  grad = np.asarray(jax.grad(total)(logits, targets, valid))
  assert (grad[:, 0][..., [0, 3]] == 0).all()
  assert (np.abs(grad[:, 0][..., [1, 2]]) > 0).all()


def test_valid_voxels_of_a_tilted_patch():
  frame = jnp.array([[0.5, -0.25, 2.0, 1.0]])
  valid = losses.valid_voxels(
    (3, 4, 5), jnp.array([[True]]), frame, jnp.array([[[2.0, 6.0]]], jnp.float32)
  )
  i, j, k = np.meshgrid(*(np.arange(n) for n in (3, 4, 5)), indexing='ij')
  height = 0.5 * i - 0.25 * j + 2 * k + 1
  np.testing.assert_array_equal(valid[0, 0], (height >= 2) & (height <= 6))


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_block_mean(factor):
  x = np.random.default_rng(0).uniform(size=(2, 3, 4, 8, 4)).astype(np.float32)
  expected = torch.nn.functional.avg_pool3d(torch.from_numpy(x), factor)
  np.testing.assert_allclose(losses.block_mean(jnp.asarray(x), factor), expected, atol=1e-6)


@pytest.mark.parametrize('factor', [1, 2, 16, 32])
def test_block_means_by_products_are_exact(factor):
  """Of full blocks too, whose sums are the largest numbers on the way."""
  x = np.random.default_rng(0).random((1, 2, 32, 64, 32)) < 0.3
  x[:, 1, :, 32:] = True
  products = jax.jit(losses.block_mean_products, static_argnums=1)
  np.testing.assert_array_equal(products(x, factor), losses.block_mean_plain(x, factor))


def test_block_supervision_at_the_border_of_a_contoured_range():
  """Blocks of 2^3, of which two voxels in height: above the range, across its end, inside it."""
  valid = jnp.zeros((1, 1, 2, 2, 6), bool).at[..., 3:].set(True)
  targets = jnp.zeros((1, 1, 2, 2, 6), bool).at[..., 1:4].set(True).at[0, 0, 0, 0, 4:].set(True)
  part, weights = losses.block_supervision(targets, valid, 2)
  # Across: half is valid, and all of that half is organ. Inside: 2 of 8 voxels are organ.
  np.testing.assert_array_equal(weights.ravel(), [0, 0.5, 1])
  np.testing.assert_array_equal(part.ravel(), [0, 1, 0.25])


def test_a_block_that_is_all_organ_where_valid_is_taught_one():
  targets = jnp.ones((1, 1, 2, 2, 4), bool)
  valid = targets.at[..., :3].set(False)
  part, weights = losses.block_supervision(targets, valid, 2)
  bce = lambda x: losses.masked_bce_dice(jnp.full((1, 1, 1, 1, 2), x), part, weights)[0]
  # Its weight is 1/2 and that of the other block 0, and still the mean is that of one block.
  np.testing.assert_allclose(bce(2.0), np.log1p(np.exp(-2.0)), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(bce)(2.0), -1 / (1 + np.exp(2.0)), rtol=1e-5)


@pytest.mark.parametrize('factor', [2, 4])
def test_a_loss_over_blocks_is_that_of_their_voxels(factor):
  """One logit a block, repeated over its voxels and supervised voxel by voxel."""
  rng = np.random.default_rng(factor)
  shape = (2, 3, 8, 4, 8)
  valid = rng.uniform(size=shape) < rng.uniform(size=shape[:2])[..., None, None, None]
  valid[..., 3:5] = False
  valid[0, 2], valid[1, 1, :] = False, False
  valid[1, 1, 0, 0, 0] = True  # a fraction of a block is all that is valid
  targets = rng.uniform(size=shape) < 0.4
  logits = rng.normal(size=(*shape[:2], *(n // factor for n in shape[2:])))

  def of_voxels(x):
    # In float64 with NumPy: BCE and Dice sums over the valid voxels, e counting blocks.
    x = x.repeat(factor, 2).repeat(factor, 3).repeat(factor, 4)
    bce, dice = [], []
    for pair in np.ndindex(shape[:2]):
      v, t = valid[pair], targets[pair][valid[pair]]
      if not v.any():
        continue
      p = 1 / (1 + np.exp(-x[pair][v]))
      bce.append(-np.log(np.where(t, p, 1 - p)).mean())
      if t.any():
        e = factor**3
        dice.append(1 - (2 * p[t].sum() + e) / (p.sum() + t.sum() + e))
    return np.mean(bce), np.mean(dice)

  blocks = losses.block_supervision(jnp.asarray(targets), jnp.asarray(valid), factor)
  got = losses.masked_bce_dice(jnp.asarray(logits, jnp.float32), *blocks)
  np.testing.assert_allclose(got, of_voxels(logits), rtol=1e-5)


def test_labels_looked_up_by_a_product_are_those_of_the_table():
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.random((256, 5)) > 0.5)
  label = jnp.asarray(rng.integers(0, 256, (2, 3, 4, 5)), jnp.uint8)
  expected = np.moveaxis(np.asarray(table)[np.asarray(label)], -1, 1)
  for look_up in (losses.look_up_product, losses.look_up_plain, losses.look_up):
    got = look_up(table, label)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, expected)
