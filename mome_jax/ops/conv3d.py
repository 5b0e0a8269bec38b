"""3D convolutions, each lowered as the platform likes it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
  """The type of statistics and scores: float32 for bfloat16, float64 for float64."""
  return jnp.promote_types(dtype, jnp.float32)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """(..., C) times (C, C_out); its gradient by the kernel moves no arrays on a CPU."""
  return x @ kernel


def _matmul_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_backward(residuals, dy):
  x, kernel = residuals
  # Fused with what made them, XLA:CPU would write both transposed, value by value.
  barrier = lax.optimization_barrier
  columns, rows = lax.platform_dependent(x, dy, cpu=lambda *a: barrier(a), default=lambda *a: a)
  by_kernel = columns.reshape(-1, x.shape[-1]).T @ rows.reshape(-1, dy.shape[-1])
  return dy @ kernel.T, by_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


def _conv3d_native(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (1, 1, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )


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
  points = np.array(points)
  rest = [np.delete(points, i) for i in range(len(points))]
  inputs = np.array([[*np.poly(roots)[::-1], 0.0] for roots in rest] + [np.poly(points)[::-1]])
  scale = [np.prod(point - roots) for point, roots in zip(points, rest, strict=True)]
  taps = np.vander(points, 3, increasing=True) / np.array(scale)[:, None]
  outputs = np.vander(points, len(points) - 1, increasing=True).T
  outputs = np.hstack([outputs, np.eye(len(outputs))[:, -1:]])
  return inputs.round(12), np.vstack([taps, (0, 0, 1)]), outputs


# m -> matrices. Points apart by the square root of 2 round less than the customary 1 and 2.
_WINOGRAD = {
  2: _cook_toom((0, 1, -1)),
  4: _cook_toom((0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))),
}


def _pad_depth(x: jax.Array, planes: int) -> jax.Array:
  return jnp.pad(x, ((0, 0), (planes, planes), (0, 0), (0, 0), (0, 0)))


def _combine(rows: Sequence[Sequence[float]], terms: Sequence[jax.Array]) -> list[jax.Array]:
  """Of each row, the sum of the terms with the row's factors."""
  return [
    sum(float(factor) * x for factor, x in zip(row, terms, strict=True) if factor) for row in rows
  ]


def _tiles(x: jax.Array, m: int) -> list[jax.Array]:
  """B^T applied to the m + 2 planes around each m planes of x: arrays (B, D / m, H, W, C)."""
  padded = _pad_depth(x, 1)
  last = x.shape[1] - m + 1
  return _combine(_WINOGRAD[m][0], [padded[:, i : i + last : m] for i in range(m + 2)])


def _is_small(shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
  """Whether a grid (B, D, H, W, C) has so few voxels that most work is with the kernel itself."""
  return 2 * np.prod(shape[:4]) <= kernel_shape[-1]


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
    return sum(_conv2d(padded[:, t : t + depth], tap) for t, tap in enumerate(kernel))
  _, taps, outputs = _WINOGRAD[m]
  products = map(_conv2d, _tiles(x, m), _combine(taps, kernel))
  return jnp.stack(_combine(outputs, list(products)), 2).reshape(*x.shape[:4], -1)


@jax.custom_vjp
def _conv3d_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
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


def _conv3d_planes_forward(x, kernel):
  return _conv3d_planes(x, kernel), (x, kernel)


def _conv3d_planes_backward(residuals, dy):
  x, kernel = residuals
  # Behind a barrier, or each of the sums of taps would read the kernel across its rows.
  transposed = lax.optimization_barrier(jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4))
  by_x = _conv3d_planes(dy, transposed)
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
  return jnp.stack(_combine(np.transpose(taps), list(products)))


_conv3d_planes.defvjp(_conv3d_planes_forward, _conv3d_planes_backward)


def conv3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3D convolution, stride 1, zero padding to the same size, lowered as the platform likes it.

  Args:
    x: (B, D, H, W, C).
    kernel: (n, n, n, C, C_out), n odd, same dtype as x.

  Returns:
    (B, D, H, W, C_out).
  """
  if kernel.shape[:3] == (1, 1, 1):
    return matmul(x, kernel[0, 0, 0])
  return lax.platform_dependent(x, kernel, cpu=_conv3d_planes, default=_conv3d_native)


def _conv3d_halving_native(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (2, 2, 2), ((1, 1),) * 3, dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )


def _conv3d_halving_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
  dtype, (b, depth, h, w, c) = x.dtype, x.shape
  x, kernel = (a.astype(at_least_float32(dtype)) for a in (x, kernel))
  padded = _pad_depth(x, 1)
  total = 0.0
  for t, tap in enumerate(kernel):
    planes = padded[:, t : t + depth : 2].reshape(b * depth // 2, h, w, c)
    total += lax.conv_general_dilated(
      planes, tap, (2, 2), ((1, 1),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
  return total.reshape(b, depth // 2, h // 2, w // 2, -1).astype(dtype)


def conv3d_halving(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3x3 convolution of every second voxel, one voxel of zeros around.

  Args:
    x: (B, D, H, W, C), even sides.
    kernel: (3, 3, 3, C, C_out), same dtype as x.

  Returns:
    (B, D / 2, H / 2, W / 2, C_out), centred on the voxels 0, 2, 4, ...
  """
  return lax.platform_dependent(
    x, kernel, cpu=_conv3d_halving_planes, default=_conv3d_halving_native
  )


def conv3d_blocked(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 3x3x3 convolution of few channels as one of 2x2x2 blocks, eight times as many channels.

  The same sums as `conv3d`. A TPU pads channels to its 128 lanes, which a one-channel image fills
  by less than one percent.

  Args:
    x: (B, D, H, W, C), even sides.
    kernel: (3, 3, 3, C, C_out), same dtype as x.

  Returns:
    (B, D, H, W, C_out).
  """
  b, d, h, w, c = x.shape
  # Output voxel 2p + o reads voxel 2p + o + t - 1 = 2(p + q - 1) + i, for tap t and block tap q.
  reads = np.zeros((3, 3, 2, 2), np.float32)  # (q, t, i, o)
  for tap, o in np.ndindex(3, 2):
    q, i = divmod(o + tap - 1 + 2, 2)
    reads[q, tap, i, o] = 1
  reads = jnp.asarray(reads, x.dtype)
  wide = jnp.einsum('ptia,qujb,rvkc,tuvxy->pqrijkxabcy', reads, reads, reads, kernel)
  blocks = x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  y = conv3d(blocks.reshape(*blocks.shape[:4], -1), wide.reshape(3, 3, 3, 8 * c, -1))
  y = y.reshape(*blocks.shape[:4], 2, 2, 2, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return y.reshape(b, d, h, w, -1)


def _conv3d_doubling_native(x: jax.Array, kernel: jax.Array) -> jax.Array:
  b, d, h, w, _ = x.shape
  y = jnp.einsum('bdhwc,xyzco->bdxhywzo', x, kernel)
  return y.reshape(b, 2 * d, 2 * h, 2 * w, -1)


def _conv3d_doubling_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """One product for each of the four rows that a row of voxels becomes, so that rows move whole."""
  b, d, h, w, c = x.shape
  features = kernel.shape[-1]
  flat = x.reshape(-1, c)
  row = lambda taps: (flat @ taps.swapaxes(0, 1).reshape(c, -1)).reshape(b, d, h, -1)
  planes = [jnp.stack([row(taps) for taps in plane], 3).reshape(b, d, -1) for plane in kernel]
  return jnp.stack(planes, 2).reshape(b, 2 * d, 2 * h, 2 * w, features)


def conv3d_doubling(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Transposed convolution, kernel 2, stride 2; without overlap it is a matrix product.

  Args:
    x: (B, D, H, W, C).
    kernel: (2, 2, 2, C, C_out), same dtype as x.

  Returns:
    (B, 2 D, 2 H, 2 W, C_out).
  """
  return lax.platform_dependent(
    x, kernel, cpu=_conv3d_doubling_rows, default=_conv3d_doubling_native
  )
