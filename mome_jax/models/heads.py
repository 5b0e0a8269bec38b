"""Class heads: three 1x1x1 convolutions whose weights are generated from each class's text."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax.models import layers

WIDTH = 8  # channels of the expert outputs and of the heads' hidden layers
_SIZES = (WIDTH * WIDTH, WIDTH * WIDTH, WIDTH, WIDTH, WIDTH, 1)  # w1 w2 w3 b1 b2 b3
NUM_PARAMETERS = sum(_SIZES)  # P = 153
PRIOR = 0.01  # probability of a class at a voxel, before training


class ScanContext(nn.Module):
  """Global context of the scan: bottleneck (B, D, H, W, C) -> (B, d) float32."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, bottleneck: jax.Array) -> jax.Array:
    x = nn.relu(layers.GroupNorm(dtype=self.dtype, name='norm')(bottleneck))
    return nn.Dense(self.features, name='project')(x.astype(jnp.float32).mean((1, 2, 3)))


class HeadGenerator(nn.Module):
  """Context (B, d) and class features (K, d) -> the classes' head weights (B, K, 153) float32."""

  @nn.compact
  def __call__(self, context: jax.Array, classes: jax.Array) -> jax.Array:
    shape = (context.shape[0], classes.shape[0], context.shape[-1])
    pairs = jnp.concatenate(
      [jnp.broadcast_to(context[:, None], shape), jnp.broadcast_to(classes[None], shape)], -1
    )
    return nn.Dense(NUM_PARAMETERS, bias_init=_rare, name='controller')(pairs)


def _rare(key, shape, dtype=jnp.float32):
  """Zeros but for the last bias: fresh heads expect a class in few voxels.

  Without it the first steps push every logit far down, and relu units of the heads die on the way.
  """
  del key
  return jnp.zeros(shape, dtype).at[-1].set(math.log(PRIOR / (1 - PRIOR)))


def apply_heads(theta: jax.Array, z: jax.Array) -> jax.Array:
  """Class logits of one expert, `w3 relu(w2 relu(w1 z + b1) + b2) + b3` per class and voxel.

  Args:
    theta: (B, K, 153) float32; w1 (out, in), w2 (out, in), w3 (in), b1, b2, b3 in this order.
    z: (B, D, H, W, 8), the expert's output, in the compute dtype.

  Returns:
    (B, K, D, H, W) float32.
  """
  batch, *grid, _ = z.shape
  bounds = [sum(_SIZES[: i + 1]) for i in range(len(_SIZES) - 1)]
  w1, w2, w3, b1, b2, b3 = jnp.split(theta, bounds, axis=-1)
  square = (*theta.shape[:2], WIDTH, WIDTH)
  w1, w2, w3, b1, b2 = (
    w.astype(z.dtype) for w in (w1.reshape(square), w2.reshape(square), w3, b1, b2)
  )
  z = z.reshape(batch, -1, WIDTH)
  hidden = nn.relu(jnp.einsum('bni,bkoi->bkno', z, w1) + b1[:, :, None])
  hidden = nn.relu(jnp.einsum('bkni,bkoi->bkno', hidden, w2) + b2[:, :, None])
  logits = jnp.einsum('bkni,bki->bkn', hidden, w3, preferred_element_type=jnp.float32) + b3
  return logits.reshape(batch, -1, *grid)
