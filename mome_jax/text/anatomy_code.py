"""What pre-training teaches: one vector for each structure, the sum of what can be said of it.

A structure's code is organ + side + region + kind + half the code of the organ that contains it.
Each summand is a vector that is learned and shared by all structures of which it is true, so that
'left' is one direction in space for every organ, and a linear read-out tells it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.anatomy.vocabulary import Term
from mome_jax import ops

_TABLES = ('organ', 'side', 'region', 'kind')
_NORM = 6.0  # of a code; about that of the mean over the tokens of a fresh encoder
_OF_PARENT = 0.5


@dataclasses.dataclass(frozen=True)
class Code:
  """Where each of M terms finds its summands.

  Attributes:
    rows: table -> (M,) int32, rows in it.
    sizes: table -> number of its rows.
    parent: (M,) int32, rows of the organ table; -1 where nothing contains the term.
  """

  rows: dict[str, np.ndarray]
  sizes: dict[str, int]
  parent: np.ndarray

  @classmethod
  def of(cls, terms: Sequence[Term]) -> 'Code':
    """The code of some terms, in their order."""
    rows, sizes = {}, {}
    for table in _TABLES:
      values = sorted({getattr(term, table) for term in terms})
      rows[table] = np.array([values.index(getattr(term, table)) for term in terms], np.int32)
      sizes[table] = len(values)
    organs = {term.name: row for term, row in zip(terms, rows['organ'], strict=True)}
    parent = np.array([organs.get(term.parent, -1) for term in terms], np.int32)
    return cls(rows, sizes, parent)

  def init(self, key: jax.Array, width: int) -> dict[str, jax.Array]:
    """Fresh tables, (size, width) float32 each."""
    keys = jax.random.split(key, len(_TABLES))
    return {
      table: _NORM / width**0.5 * jax.random.normal(one, (self.sizes[table], width))
      for table, one in zip(_TABLES, keys, strict=True)
    }

  def __call__(self, tables: dict[str, jax.Array]) -> jax.Array:
    """The codes of all terms, (M, width) float32."""
    whole = sum(tables[table][self.rows[table]] for table in _TABLES)
    contains = jnp.where((self.parent >= 0)[:, None], tables['organ'][self.parent], 0.0)
    return whole + _OF_PARENT * contains


def loss(embeddings: jax.Array, codes: jax.Array, rows: jax.Array, temperature: float) -> jax.Array:
  """How badly phrases tell their structures, and how far they are from their codes.

  Args:
    embeddings: (2 N, d) float32, of two phrases of each of N terms: the first of all, then the
      second.
    codes: (M, d) float32, of all terms.
    rows: (N,) int32, which of them.
    temperature: of the softmax over cosine similarities.

  Returns:
    Scalar: cross entropy of finding a phrase's code among all codes and its other phrase among
    those of the batch (InfoNCE, van den Oord 2018), squared distance to the code, and how far
    codes are from one norm and from a mean of zero.
  """
  both = jnp.concatenate([rows, rows])
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  cosine = functools.partial(ops.exact, 'kd,jd->kj')
  of_codes = jax.nn.log_softmax(cosine(unit(embeddings), unit(codes)) / temperature)
  retrieved = -jnp.take_along_axis(of_codes, both[:, None], axis=1).mean()
  first, second = jnp.split(unit(embeddings), 2)
  similarity = cosine(first, second) / temperature
  matched = -jnp.diag(jax.nn.log_softmax(similarity, 0) + jax.nn.log_softmax(similarity, 1)).mean()
  away = jnp.sum((embeddings - codes[both]) ** 2, axis=-1).mean() / _NORM**2
  sizes = jnp.mean((jnp.linalg.norm(codes, axis=-1) / _NORM - 1) ** 2)
  centre = jnp.sum(codes.mean(0) ** 2) / _NORM**2
  return retrieved + 0.25 * matched + away + sizes + centre
