"""The 3D convolution of `conv3d.py` as a TPU runs it with the least traffic: planes, taps joined.

Of few patches XLA makes a batch by cutting their space into pieces (space-to-batch), and copies
features to do so before and behind every 3D convolution: up to ten times what the convolution
itself reads and writes. Planes are a batch without a copy, and a plane with those before and behind
it joined in channels feeds the matrix unit with three times as many.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mome_jax.ops.precision import precision_of

# The depth is the batch. The patches are a spatial axis on which the kernel has size 1, because
# joined with the depth in one axis they would be copied.
_PLANES = lax.ConvDimensionNumbers((1, 4, 0, 2, 3), (4, 3, 0, 1, 2), (1, 4, 0, 2, 3))


def _planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
  n, depth = kernel.shape[0], x.shape[1]
  half = n // 2
  padded = jnp.pad(x, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))
  joined = jnp.concatenate([padded[:, t : t + depth] for t in range(n)], -1)
  taps = jnp.moveaxis(kernel, 0, 2).reshape(1, n, n, n * kernel.shape[3], -1)
  return lax.conv_general_dilated(
    joined,
    taps,
    (1, 1, 1),
    ((0, 0), (half, half), (half, half)),
    dimension_numbers=_PLANES,
    precision=precision_of(x.dtype),
  )


@jax.custom_vjp
def conv3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The same convolution of every plane as a 2D one of n planes joined in channels.

  Exact: the same products, summed in float32 and rounded once. The gradient by the input is again
  such a convolution, of the output's gradient, so that none of n times as many channels is made.

  Args:
    x: (B, D, H, W, C).
    kernel: (n, n, n, C, C_out), n odd, same dtype as x.

  Returns:
    (B, D, H, W, C_out).
  """
  return _planes(x, kernel)


def _forward(x, kernel):
  return _planes(x, kernel), (x, kernel)


def _backward(residuals, dy):
  x, kernel = residuals
  by_x = _planes(dy, jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4))
  (by_kernel,) = jax.linear_transpose(lambda taps: _planes(x, taps), kernel)(dy)
  return by_x, by_kernel


conv3d.defvjp(_forward, _backward)
