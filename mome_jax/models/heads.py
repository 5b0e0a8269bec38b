"""Class heads: three 1x1x1 convolutions whose weights are generated from each class's text."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax import ops

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
    x = nn.relu(ops.GroupNorm(dtype=self.dtype, name='norm')(bottleneck))
    project = nn.Dense(self.features, precision=ops.EXACT, name='project')
    return project(x.astype(jnp.float32).mean((1, 2, 3)))


class HeadGenerator(nn.Module):
  """Context (B, d) and class features (K, d) -> the classes' head weights (B, K, 153) float32."""

  @nn.compact
  def __call__(self, context: jax.Array, classes: jax.Array) -> jax.Array:
    shape = (context.shape[0], classes.shape[0], context.shape[-1])
    pairs = jnp.concatenate(
      [jnp.broadcast_to(context[:, None], shape), jnp.broadcast_to(classes[None], shape)], -1
    )
    return nn.Dense(NUM_PARAMETERS, bias_init=_rare, precision=ops.EXACT, name='controller')(pairs)


def _rare(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Zeros but for the last bias: fresh heads expect a class in few voxels.

  Without it the first steps push every logit far down, and relu units of the heads die on the way.
  """
  del key
  return jnp.zeros(shape, dtype).at[-1].set(math.log(PRIOR / (1 - PRIOR)))


ACTIVATIONS = {'relu': nn.relu, 'leaky_relu': nn.leaky_relu}


def apply_head(theta: jax.Array, z: jax.Array, activation: str = 'relu') -> jax.Array:
  """Logits of one class from one expert, `w3 act(w2 act(w1 z + b1) + b2) + b3` per voxel.

  Args:
    theta: (B, 153) float32; w1 (out, in), w2 (out, in), w3 (in), b1, b2, b3 in this order.
    z: (B, 8, D, H, W), the expert's output, in the compute dtype. Channels come first: the eight
      numbers of a voxel would fill half a vector register, a row of voxels fills many.
    activation: 'relu', as published weights expect, or 'leaky_relu', whose units cannot die.

  Returns:
    (B, D, H, W) float32.
  """
  batch, _, *grid = z.shape
  w1, w2, w3, b1, b2, b3 = _weights(theta)
  w1, w2, w3 = (w.astype(z.dtype) for w in (w1, w2, w3))
  act = ACTIVATIONS[activation]
  product = functools.partial(jnp.einsum, precision=ops.precision_of(z.dtype))
  hidden = product('boi,bin->bon', w1, z.reshape(batch, WIDTH, -1))
  hidden = act(ops.add_bias(hidden, b1[..., None]))
  hidden = act(ops.add_bias(product('boi,bin->bon', w2, hidden), b2[..., None]))
  logits = product('bi,bin->bn', w3, hidden, preferred_element_type=jnp.float32) + b3
  return logits.reshape(batch, *grid)


def _weights(theta: jax.Array) -> list[jax.Array]:
  """(..., 153) -> w1 (..., 8, 8), w2 (..., 8, 8), w3 (..., 8), b1, b2 (..., 8), b3 (..., 1)."""
  bounds = [sum(_SIZES[: i + 1]) for i in range(len(_SIZES) - 1)]
  w1, w2, *rest = jnp.split(theta, bounds, axis=-1)
  return [*(w.reshape(*w.shape[:-1], WIDTH, WIDTH) for w in (w1, w2)), *rest]


def apply_heads(theta: jax.Array, z: jax.Array, activation: str = 'relu') -> jax.Array:
  """`apply_head` of K classes at once, as a TPU lowers it.

  The first layer is one product of all classes, and space keeps its axes: a TPU would move every
  value to join them in one.

  Args:
    theta: (B, K, 153) float32.
    z: (B, 8, D, H, W), the expert's output, in the compute dtype.
    activation: see `apply_head`.

  Returns:
    (B, K, D, H, W) in the dtype of z; the last sum is float32.
  """
  w1, w2, w3, b1, b2, b3 = _weights(theta)
  w1, w2, w3 = (w.astype(z.dtype) for w in (w1, w2, w3))
  at_voxels = lambda b: b[..., None, None, None]
  act = ACTIVATIONS[activation]
  product = functools.partial(jnp.einsum, precision=ops.precision_of(z.dtype))
  hidden = act(ops.add_bias(product('bkoi,bidhw->bkodhw', w1, z), at_voxels(b1)))
  hidden = act(ops.add_bias(product('bkoi,bkidhw->bkodhw', w2, hidden), at_voxels(b2)))
  logits = product('bki,bkidhw->bkdhw', w3, hidden, preferred_element_type=jnp.float32)
  return (logits + at_voxels(b3[..., 0])).astype(z.dtype)
