"""Masked BCE + Dice for partial labels."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mome_jax import ops
from mome_jax.models import class_maps


class Counts(NamedTuple):
  """What the means of a loss run over, where a batch is computed in parts: those of all its parts.

  Attributes:
    supervised: () int32, (case, class) pairs with a valid voxel.
    absent: () int32, those of a class that the case's scan cannot show.
    outside: () int32, pairs with no valid voxel, and with one outside the patient.
    present: () int32, those with a target among the valid voxels.
    known: () int32, cases with a voxel that is not to be ignored.
    parts: () int32, of the batch.
  """

  supervised: jax.Array
  absent: jax.Array
  outside: jax.Array
  present: jax.Array
  known: jax.Array
  parts: jax.Array


@jax.named_scope(class_maps.SCOPE)
def count(
  targets: jax.Array, valid: jax.Array, outside: jax.Array, known: jax.Array, absent: jax.Array
) -> Counts:
  """The counts of one part of a batch; the sums over all parts are those of the batch.

  Args:
    targets: (B, K, D, H, W) bool.
    valid: (B, K, D, H, W) bool.
    outside: (B, D, H, W) bool; voxels outside the patient.
    known: (B, D, H, W) bool; voxels that are not to be ignored.
    absent: (B, K) bool; classes that the case's scan cannot show.
  """
  some = lambda x: x.any((-3, -2, -1))
  number = lambda x: x.sum(dtype=jnp.int32)
  return Counts(
    number(some(valid)),
    number(some(valid) & absent),
    number(some(outside)[:, None] & ~some(valid)),
    number(some(targets & valid)),
    number(some(known)),
    jnp.ones((), jnp.int32),
  )


class PairLosses(NamedTuple):
  """Losses of each (case, class) pair.

  Attributes:
    bce: (B, K) float32, binary cross entropy.
    dice: (B, K) float32, 1 - Dice or -log(Dice).
    supervised: (B, K) bool; has a valid voxel.
    present: (B, K) bool; has a target in one.
  """

  bce: jax.Array
  dice: jax.Array
  supervised: jax.Array
  present: jax.Array


def mean(values: jax.Array, of: jax.Array, count: jax.Array | None = None) -> jax.Array:
  """Mean of some pairs' values, 0 where there are none.

  Args:
    values: (B, K) float32.
    of: (B, K) bool; the pairs.
    count: () int32, what their sum is divided by; None is how many there are here. With that of a
      whole batch the results of its parts add up to its own.
  """
  return (values * of).sum() / jnp.maximum(of.sum() if count is None else count, 1)


@jax.named_scope(class_maps.SCOPE)
def masked_bce_dice(
  logits: jax.Array,
  targets: jax.Array,
  valid: jax.Array,
  *,
  log: bool = False,
  pairs: jax.Array | None = None,
  pairs_present: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Binary cross entropy and soft Dice, averaged over the supervised (case, class) pairs.

  A pair counts if any of its voxels is valid; every other pair, and every invalid voxel of a
  counted one, gets a gradient of exactly zero. The means run over the arrays as given, so under
  jit with a sharded batch they are means over the global batch.

  Args:
    logits: as of `pair_losses`, like the next three.
    targets: (B, K, D, H, W).
    valid: (B, K, D, H, W).
    log: -log(Dice) in place of 1 - Dice.
    pairs: () int32, of all pairs of a batch that this is a part of: see `mean`.
    pairs_present: the same of the pairs with a target.

  Returns:
    Two float32 scalars: the mean over supervised pairs of BCE, and the mean over pairs with a
    target of 1 - Dice or -log(Dice).
  """
  losses = pair_losses(logits, targets, valid, log=log)
  return (
    mean(losses.bce, losses.supervised, pairs),
    mean(losses.dice, losses.present, pairs_present),
  )


@jax.named_scope(class_maps.SCOPE)
def pair_losses(
  logits: jax.Array, targets: jax.Array, valid: jax.Array, *, log: bool = False
) -> PairLosses:
  """Binary cross entropy and soft Dice of every (case, class) pair.

  Dice is meant for the pairs with a target in the patch only. Of an absent class it would push
  every probability p down with a force near 0.25 a pair, while a class that is there pulls its few
  voxels up with a force near 2 p: early in training, patches without an organ would then hold its
  probability at zero. BCE alone teaches absence.

  The gradient of 1 - Dice at a probability p near zero falls with p, so that a class of a few
  voxels that starts low stays there. That of -log(Dice) does not: it pulls such a class up with a
  force of 1 in all, whatever p and its size (Wong et al., MICCAI 2018, with their exponent at 1).

  Args:
    logits: (B, K, D, H, W) float32.
    targets: (B, K, D, H, W), 0 to 1; the class's part of what is valid in a voxel or block.
    valid: (B, K, D, H, W), 0 to 1; the weight of a voxel or block, 0 where the label says nothing
      about the class.
    log: -log(Dice) in place of 1 - Dice.

  Returns:
    The mean of BCE weighted by v, and 1 - Dice or -log(Dice), where
    Dice = (2 sum v p t + e) / (sum v p + sum v t + e), with e = 1, or 1e-7 under the logarithm.
  """
  spatial = (2, 3, 4)
  logits = jnp.where(valid > 0, logits, 0.0)
  targets, valid = (x.astype(jnp.float32) for x in (targets, valid))
  voxels = valid.sum(spatial)
  supervised = voxels > 0

  bce = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
  bce = (bce * valid).sum(spatial) / jnp.where(supervised, voxels, 1.0)
  probability = jax.nn.sigmoid(logits) * valid
  overlap = (probability * targets).sum(spatial)
  size = (targets * valid).sum(spatial)
  e = 1e-7 if log else 1.0
  dice = (2 * overlap + e) / (probability.sum(spatial) + size + e)
  dice = -jnp.log(dice) if log else 1 - dice
  return PairLosses(bce, dice, supervised, size > 0)


def prompt_contrast(sampled: jax.Array, default: jax.Array, temperature: float = 0.1) -> jax.Array:
  """How badly a class's prompts can be told from other classes' (InfoNCE, van den Oord 2018).

  Prompts share most of their words, so that fresh embeddings of all classes are nearly parallel and
  every class gets the same head; this pulls them apart in tens of steps, and pulls the synonyms of
  a class together. The two sets hold the same classes in the same order.

  Args:
    sampled: (K, d_t) float32, embeddings of random prompts.
    default: (K, d_t) float32, embeddings of the classes' default prompts.
    temperature: of the softmax over cosine similarities.

  Returns:
    Mean cross entropy of finding each sampled prompt's class among the default ones.
  """
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  similarity = ops.exact('kd,jd->kj', unit(sampled), unit(default)) / temperature
  return -jnp.diag(jax.nn.log_softmax(similarity)).mean()


@jax.named_scope(class_maps.SCOPE)
def look_up(code_table: jax.Array, label: jax.Array) -> jax.Array:
  """Where each class is: (256, K) bool by code, label (B, D, H, W) uint8 -> (B, K, D, H, W) bool.

  On a TPU a product with the codes' one-hot vectors, which are never stored: a gather would fetch
  the K values of every voxel by themselves.
  """
  return jax.lax.platform_dependent(code_table, label, tpu=look_up_product, default=look_up_plain)


def look_up_plain(code_table: jax.Array, label: jax.Array) -> jax.Array:
  """`look_up` as a gather."""
  return jnp.moveaxis(code_table.T[:, label.astype(jnp.int32)], 0, 1)


def look_up_product(code_table: jax.Array, label: jax.Array) -> jax.Array:
  """`look_up` as a matrix product."""
  codes = jnp.arange(len(code_table), dtype=jnp.int32)[:, None, None, None]
  one_hot = (label[:, None].astype(jnp.int32) == codes).astype(jnp.bfloat16)
  return jnp.einsum('ck,bcdhw->bkdhw', code_table.astype(jnp.bfloat16), one_hot) > 0.5


@jax.named_scope(class_maps.SCOPE)
def valid_voxels(
  shape: tuple[int, int, int], supervised: jax.Array, frame: jax.Array, slice_range: jax.Array
) -> jax.Array:
  """Where the labels of a batch say something about each class.

  Args:
    shape: (D, H, W) of the patches.
    supervised: (B, K) bool; the classes that the case's dataset labels.
    frame: (B, 4) float32; a patch voxel (i, j, k) lies at height
      frame[0] i + frame[1] j + frame[2] k + frame[3] in mm.
    slice_range: (B, K, 2) float32; lowest and highest height in mm where the class was contoured.

  Returns:
    (B, K, D, H, W) bool.
  """
  height = frame[:, 3].reshape(-1, 1, 1, 1)
  for axis, size in enumerate(shape):
    position = jnp.arange(size, dtype=jnp.float32).reshape(
      [-1 if a == axis else 1 for a in range(3)]
    )
    height = height + frame[:, axis].reshape(-1, 1, 1, 1) * position
  height = height[:, None]
  low, high = (slice_range[..., i, None, None, None] for i in (0, 1))
  # A thousandth of a slice, as in `evaluate.metrics.restrict`: float32 mm lose the end slices.
  slack = 1e-3 * jnp.abs(frame[:, :3]).max(1).reshape(-1, 1, 1, 1, 1)
  inside = (height >= low - slack) & (height <= high + slack)
  return supervised[..., None, None, None] & inside


def block_mean(x: jax.Array, factor: int) -> jax.Array:
  """Mean over blocks of factor^3 voxels: (B, K, D, H, W) bool -> (B, K, D/f, H/f, W/f) float32."""
  return jax.lax.platform_dependent(
    x,
    tpu=functools.partial(block_mean_products, factor=factor),
    default=functools.partial(block_mean_plain, factor=factor),
  )


def block_mean_plain(x: jax.Array, factor: int) -> jax.Array:
  """`block_mean` as a sum over three axes."""
  b, k, d, h, w = x.shape
  blocks = x.astype(jnp.float32).reshape(
    b, k, d // factor, factor, h // factor, factor, w // factor, factor
  )
  return blocks.mean((3, 5, 7))


def block_mean_products(x: jax.Array, factor: int) -> jax.Array:
  """`block_mean` as a matrix product along each axis, exact: a TPU would pad rows of few values."""
  dtype = jnp.bfloat16 if factor <= 16 else jnp.float32  # whole numbers up to 256 = 16^2 are exact
  y = x.astype(dtype)
  for axis, term in ((4, 'bkdhw,wx->bkdhx'), (3, 'bkdhw,hx->bkdxw'), (2, 'bkdhw,dx->bkxhw')):
    blocks = np.repeat(np.eye(x.shape[axis] // factor), factor, axis=0)
    wide = jnp.float32 if axis == 2 else dtype
    y = jnp.einsum(
      term, y, jnp.asarray(blocks, dtype), precision=ops.EXACT, preferred_element_type=wide
    )
  return y / factor**3


@jax.named_scope(class_maps.SCOPE)
def block_supervision(
  targets: jax.Array, valid: jax.Array, factor: int
) -> tuple[jax.Array, jax.Array]:
  """What blocks of factor^3 voxels are taught, for `masked_bce_dice`.

  With the class's part of a block's valid voxels as its target, and their part of the block as its
  weight, the loss is that of one logit for all its voxels (Dice's e counts blocks then).

  Args:
    targets: (B, K, D, H, W) bool.
    valid: (B, K, D, H, W) bool.
    factor: voxels along a side of a block.

  Returns:
    Targets and weights, both (B, K, D / factor, H / factor, W / factor) float32.
  """
  weights = block_mean(valid, factor)
  part = block_mean(targets & valid, factor)
  return part / jnp.where(weights > 0, weights, 1.0), weights
