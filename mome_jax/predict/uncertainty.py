"""How sure a segmentation is of its masks, from its own probabilities."""

import math
from collections.abc import Sequence

import numpy as np

from mome_jax.inference.slabs import Slab

SURE = 0.75  # probability
_LOGIT = math.log(SURE / (1 - SURE))


class Uncertainty:
  """Counts the voxels that a segmentation is not sure of, while it is made.

  Args:
    columns: K indices of the classes of a segmenter.
  """

  def __init__(self, columns: Sequence[int]):
    self._columns = columns
    self._voxels, self._unsure = np.zeros((2, len(columns)), np.int64)

  def add(self, slab: Slab) -> None:
    """Takes the logits of some planes."""
    for k, column in enumerate(self._columns):
      claim = slab.positive(column)
      if claim is not None:
        _, logits = claim
        self._voxels[k] += np.count_nonzero(logits > 0)
        self._unsure[k] += np.count_nonzero((logits > 0) & (logits < _LOGIT))

  def shares(self) -> list[float | None]:
    """Of the voxels of each class over probability 0.5, the share below `SURE`; None without any.

    Before rules of post-processing, and before a voxel that several classes claim goes to one.
    """
    return [
      round(float(unsure / voxels), 4) if voxels else None
      for voxels, unsure in zip(self._voxels, self._unsure, strict=True)
    ]
