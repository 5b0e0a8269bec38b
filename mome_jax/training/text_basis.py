"""The basis in which the layer that reads text is trained: that of the run's classes.

Adam gives every number of a matrix about the same step, whatever its gradient. Where classes are
one-hot vectors each has a row for itself, and a small organ learns as fast as a large one. Dense
vectors of a text encoder share all rows: the sign of each step is that of the classes with the
largest gradients. So the matrix is trained as if its inputs were turned and scaled until the
classes' vectors are as near to one-hot ones as turning brings them (symmetric orthogonalisation,
Loewdin 1950), and the network computes what it did. One-hot vectors train as ever.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_KERNEL = ('model', 'text', 'kernel')


class TextBasisState(NamedTuple):
  """State of `in_text_basis`: (d_t, d_t) float32, and that of the optimizer inside."""

  text_basis: jax.Array
  inner: Any


def in_text_basis(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """An optimizer that sees the kernel of the text layer in the basis that its state holds.

  The basis A is a turn times a scale. With inputs A v the same outputs need the kernel A^-T K; its
  gradient is A times that of K, and its step moves K by A^T times as much.

  Args:
    inner: of {'model': ..., 'text': ...}.
  """

  def init(params):
    kernel = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _is_it(path)]
    width = kernel[0].shape[0] if kernel else 0
    return TextBasisState(jnp.eye(width), inner.init(params))

  def update(updates, state, params=None):
    basis, inside = state
    scale = jnp.sum(basis**2) / max(len(basis), 1)
    updates = _at_kernel(lambda gradient: basis @ gradient, updates)
    params = _at_kernel(lambda kernel: basis @ kernel / scale, params)
    updates, inside = inner.update(updates, inside, params)
    updates = _at_kernel(lambda step: basis.T @ step, updates)
    return updates, TextBasisState(basis, inside)

  return optax.GradientTransformation(init, update)


def _at_kernel(change: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: change(leaf) if _is_it(path) else leaf, tree
  )


def _is_it(path: Any) -> bool:
  return tuple(key.key for key in path) == _KERNEL


def class_basis(vectors: np.ndarray) -> np.ndarray:
  """The turn and scale that bring the vectors of classes next to one-hot vectors.

  Args:
    vectors: (K, d_t), of the classes' default prompts.

  Returns:
    (d_t, d_t) float32, orthogonal rows of one length, one over the mean length of the vectors. Of
    more classes than numbers, which no basis has apart, the scale alone.
  """
  count, width = vectors.shape
  scale = 1 / max(float(np.linalg.norm(vectors, axis=1).mean()), 1e-6)
  if count > width:
    return scale * np.eye(width, dtype=np.float32)
  unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
  left, _, right = np.linalg.svd(unit.astype(np.float64))
  rows = left @ right[:count]
  return (scale * np.concatenate([rows, right[count:]])).astype(np.float32)


def with_basis(opt_state: Any, basis: np.ndarray) -> Any:
  """The state of an optimizer with another basis, on the devices of the one that it had."""
  where = optax.tree_utils.tree_get(opt_state, 'text_basis').sharding
  return optax.tree_utils.tree_set(opt_state, text_basis=jax.device_put(basis, where))
