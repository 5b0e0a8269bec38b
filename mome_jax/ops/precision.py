"""Number types and precisions that matter to a result."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

# Of products that decide which experts are chosen: a TPU's default is one pass in bfloat16, which
# sends a few tokens in a thousand elsewhere, and a GPU's has 10 bits.
EXACT = lax.Precision.HIGHEST
exact = functools.partial(jnp.einsum, precision=EXACT)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
  """The type of statistics and scores: float32 for bfloat16, float64 for float64."""
  return jnp.promote_types(dtype, jnp.float32)
