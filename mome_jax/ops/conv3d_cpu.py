"""The 3D convolutions of `conv3d.py` as a CPU runs them fast: planes, tiles and whole rows."""

import functools
import math
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mome_jax.ops.precision import at_least_float32


def _conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Every plane of x (B, D, H, W, C) with one kernel (n, n, C, C_out)."""
  b, d, h, w, c = x.shape
  planes = lax.conv_general_dilated(
    x.reshape(b * d, h, w, c), kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return planes.reshape(b, d, h, w, -1)


def _cook_toom(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Winograd's minimal filtering (Lavin and Gray, CVPR 2016) for three taps.

  F(m, 3) makes m outputs from m + 2 products, of polynomials at m + 1 points and at infinity.

  Returns:
    B^T (m + 2, m + 2), of the inputs; G (m + 2, 3), of the taps; A^T (m, m + 2), of the products.
  """
  at = np.array(points)
  rest = [np.delete(at, i) for i in range(len(at))]
  inputs = np.array([[*np.poly(roots)[::-1], 0.0] for roots in rest] + [np.poly(at)[::-1]])
  scale = [np.prod(point - roots) for point, roots in zip(at, rest, strict=True)]
  taps = np.vander(at, 3, increasing=True) / np.array(scale)[:, None]
  outputs = np.vander(at, len(at) - 1, increasing=True).T
  outputs = np.hstack([outputs, np.eye(len(outputs))[:, -1:]])
  return inputs.round(12), np.vstack([taps, (0, 0, 1)]), outputs


# m -> matrices. Points apart by the square root of 2 round less than the customary 1 and 2.
_WINOGRAD = {
  2: _cook_toom((0, 1, -1)),
  4: _cook_toom((0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))),
}


def _pad_depth(x: jax.Array, planes: int) -> jax.Array:
  return jnp.pad(x, ((0, 0), (planes, planes), (0, 0), (0, 0), (0, 0)))


def _combine(rows: np.ndarray, terms: Iterable[jax.Array]) -> list[jax.Array]:
  """Of each row, the sum of the terms with the row's factors."""
  terms = list(terms)
  return [
    _sum(float(factor) * x for factor, x in zip(row, terms, strict=True) if factor) for row in rows
  ]


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(operator.add, terms)


def _tiles(x: jax.Array, m: int) -> list[jax.Array]:
  """B^T applied to the m + 2 planes around each m planes of x: arrays (B, D / m, H, W, C)."""
  padded = _pad_depth(x, 1)
  last = x.shape[1] - m + 1
  return _combine(_WINOGRAD[m][0], [padded[:, i : i + last : m] for i in range(m + 2)])


def _is_small(shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
  """Whether a grid (B, D, H, W, C) has so few voxels that most work is with the kernel itself."""
  return 2 * math.prod(shape[:4]) <= kernel_shape[-1]


def _columns(x: jax.Array, n: int) -> jax.Array:
  """The n^3 neighbours of each voxel: (B, D, H, W, C) -> (B D H W, n^3 C)."""
  d, h, w = x.shape[1:4]
  half = n // 2
  padded = jnp.pad(x, ((0, 0), *((half, half),) * 3, (0, 0)))
  shifted = [padded[:, i : i + d, j : j + h, k : k + w] for i, j, k in np.ndindex(n, n, n)]
  return jnp.stack(shifted, -2).reshape(-1, n**3 * x.shape[-1])


def _planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
  if _is_small(x.shape, kernel.shape):
    y = _columns(x, len(kernel)) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*x.shape[:4], -1)
  depth = x.shape[1]
  m = next((m for m in (4, 2) if depth % m == 0), None)
  if m is None or kernel.shape[0] != 3:
    padded = _pad_depth(x, kernel.shape[0] // 2)
    return _sum(_conv2d(padded[:, t : t + depth], tap) for t, tap in enumerate(kernel))
  _, taps, outputs = _WINOGRAD[m]
  products = map(_conv2d, _tiles(x, m), _combine(taps, kernel))
  return jnp.stack(_combine(outputs, products), 2).reshape(*x.shape[:4], -1)


@jax.custom_vjp
def conv3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The same convolution as 2D ones, because XLA:CPU has fast code for those only.

  Along the depth, Winograd's F(4, 3) makes four output planes from six plane products instead of
  twelve, where the depth is even but no multiple of 4, F(2, 3) two from four; what that adds is
  sums of planes. It equals the plain sum over the three taps, which odd depths take, up to rounding
  (1e-6 of the largest value in float32). Few voxels of many channels are one matrix product with
  their neighbours. The gradient by the input is again such a convolution, the gradient by the
  kernel the transpose of F(2, 3). Of bfloat16 the sums are float32 and rounded once, as on a TPU.
  """
  wide = at_least_float32(x.dtype)
  return _planes(x.astype(wide), kernel.astype(wide)).astype(x.dtype)


def _conv3d_forward(x, kernel):
  return conv3d(x, kernel), (x, kernel)


def _conv3d_backward(residuals, dy):
  x, kernel = residuals
  # Behind a barrier, or each of the sums of taps would read the kernel across its rows.
  transposed = lax.optimization_barrier(jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4))
  by_x = conv3d(dy, transposed)
  wide = at_least_float32(x.dtype)
  by_kernel = _kernel_gradient(x.astype(wide), dy.astype(wide), kernel.shape)
  return by_x, by_kernel.astype(kernel.dtype)


def _kernel_gradient(x: jax.Array, dy: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Gradient (n, n, n, C, C_out) = `shape` of the kernel, from x and the gradient of the output."""
  if _is_small(dy.shape, shape):
    return (_columns(x, shape[0]).T @ dy.reshape(-1, shape[-1])).reshape(shape)
  depth = x.shape[1]

  def by_tap(planes, dy):
    return jax.linear_transpose(
      lambda tap: _conv2d(planes, tap), jax.ShapeDtypeStruct(shape[1:], x.dtype)
    )(dy)[0]

  if depth % 2 or shape[0] != 3:
    padded = _pad_depth(x, shape[0] // 2)
    return jnp.stack([by_tap(padded[:, t : t + depth], dy) for t in range(shape[0])])
  _, taps, outputs = _WINOGRAD[2]
  products = map(by_tap, _tiles(x, 2), _combine(np.transpose(outputs), [dy[:, ::2], dy[:, 1::2]]))
  return jnp.stack(_combine(np.transpose(taps), products))


conv3d.defvjp(_conv3d_forward, _conv3d_backward)


def conv3d_halving(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Every second voxel of the convolution: the sum of three strided 2D ones."""
  dtype, (b, depth, h, w, c) = x.dtype, x.shape
  x, kernel = (a.astype(at_least_float32(dtype)) for a in (x, kernel))
  padded = _pad_depth(x, 1)

  def by_tap(t, tap):
    planes = padded[:, t : t + depth : 2].reshape(b * depth // 2, h, w, c)
    return lax.conv_general_dilated(
      planes, tap, (2, 2), ((1, 1),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  total = _sum(by_tap(t, tap) for t, tap in enumerate(kernel))
  return total.reshape(b, depth // 2, h // 2, w // 2, -1).astype(dtype)


def conv3d_doubling(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The transposed convolution, kernel 2, stride 2, by whole rows.

  One product for each of the four rows that a row of voxels becomes.
  """
  b, d, h, w, c = x.shape
  features = kernel.shape[-1]
  flat = x.reshape(-1, c)
  row = lambda taps: (flat @ taps.swapaxes(0, 1).reshape(c, -1)).reshape(b, d, h, -1)
  planes = [jnp.stack([row(taps) for taps in plane], 3).reshape(b, d, -1) for plane in kernel]
  return jnp.stack(planes, 2).reshape(b, 2 * d, 2 * h, 2 * w, features)
