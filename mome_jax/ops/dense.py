"""Products and sums over channels and space, and the dense layer made of them."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mome_jax.ops.precision import at_least_float32, precision_of


def matmul_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`matmul` with the gradients that XLA makes."""
  return jnp.matmul(x, kernel, precision=precision_of(x.dtype))


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """(..., C) times (C, C_out); its gradient by the kernel moves no arrays on a CPU."""
  return matmul_plain(x, kernel)


def _matmul_forward(x, kernel):
  return matmul_plain(x, kernel), (x, kernel)


def _matmul_backward(residuals, dy):
  x, kernel = residuals
  # Fused with what made them, XLA:CPU would write both transposed, value by value.
  barrier = lax.optimization_barrier
  columns, rows = lax.platform_dependent(x, dy, cpu=lambda *a: barrier(a), default=lambda *a: a)
  by_kernel = matmul_plain(columns.reshape(-1, x.shape[-1]).T, rows.reshape(-1, dy.shape[-1]))
  return matmul_plain(dy, kernel.T), by_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


def _sum_rows(x: jax.Array) -> jax.Array:
  """Sum over space in two steps: XLA:CPU splits a sum over its cores by the rows of its result."""
  rows = x.reshape(x.shape[0], -1, *x.shape[-2:]).sum(2)
  return lax.optimization_barrier(rows).sum(1)


def spatial_sum_plain(x: jax.Array) -> jax.Array:
  """`spatial_sum` in one step."""
  return x.sum(tuple(range(1, x.ndim - 1)))


def spatial_sum(x: jax.Array) -> jax.Array:
  """Sum over space: (B, ..., C) -> (B, C)."""
  return lax.platform_dependent(x, cpu=_sum_rows, default=spatial_sum_plain)


def broadcast_plain(vector: jax.Array, shape: Sequence[int]) -> jax.Array:
  """`broadcast` with the gradient that XLA makes."""
  return jnp.broadcast_to(vector, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def broadcast(vector: jax.Array, shape: Sequence[int]) -> jax.Array:
  """(C,) -> shape (..., C); its gradient, a sum over all but C, is split over a CPU's cores."""
  return jnp.broadcast_to(vector, shape)


def _broadcast_forward(vector, shape):
  return jnp.broadcast_to(vector, shape), None


def _broadcast_backward(shape, _, dy):
  wide = dy.astype(at_least_float32(dy.dtype))
  return (spatial_sum(wide[None])[0].astype(dy.dtype),)


broadcast.defvjp(_broadcast_forward, _broadcast_backward)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias, in the type of x; the gradient of the bias is summed in float32.

  XLA sums in the type that it is given: from Hopper on, bfloat16 in bfloat16 on a GPU.

  Args:
    x: (...).
    bias: any shape that broadcasts to that of x.
  """
  wide = bias.astype(at_least_float32(x.dtype))
  return x + jnp.broadcast_to(wide, x.shape).astype(x.dtype)


class Dense(nn.Module):
  """`nn.Dense` for voxels, (..., C) -> (..., features), with a fast gradient on a CPU."""

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    y = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + broadcast(bias.astype(self.dtype), y.shape)
    return y
