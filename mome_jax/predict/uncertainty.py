"""How sure a segmentation is of its masks, from its own probabilities."""

from collections.abc import Sequence

import numpy as np

from mome_jax.inference.slabs import Planes


class Uncertainty:
  """Counts the voxels that a segmentation is not sure of, while it is made.

  Args:
    columns: K indices of the classes of a segmenter.
  """

  def __init__(self, columns: Sequence[int]):
    self._columns = columns
    self._voxels, self._unsure = np.zeros((2, len(columns)), np.int64)

  def add(self, slab: Planes) -> None:
    """Takes the logits of some planes."""
    for k, column in enumerate(self._columns):
      voxels, unsure = slab.sure(column)
      self._voxels[k] += voxels
      self._unsure[k] += unsure

  def shares(self) -> list[float | None]:
    """Of the voxels of each class over probability 0.5, the share below `slabs.SURE`.

    None without any. Before rules of post-processing, and before a voxel that several classes claim
    goes to one.
    """
    return [
      round(float(unsure / voxels), 4) if voxels else None
      for voxels, unsure in zip(self._voxels, self._unsure, strict=True)
    ]
