"""Number types and precisions that matter to a result."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

# Of products that decide which experts are chosen: a TPU's default is one pass in bfloat16, which
# sends a few tokens in a thousand elsewhere, and a GPU's has 10 bits.
EXACT = lax.Precision.HIGHEST
exact = functools.partial(jnp.einsum, precision=EXACT)


def precision_of(dtype: DTypeLike) -> lax.Precision | None:
  """Of a network's products of this type: those of float32 are float32 on a TPU and a GPU too."""
  return EXACT if jnp.dtype(dtype).itemsize >= 4 else None


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
  """The type of statistics and scores: float32 for bfloat16, float64 for float64."""
  return jnp.promote_types(dtype, jnp.float32)
