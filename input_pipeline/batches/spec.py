"""What a training batch holds, for all who make, place or compile for one."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class BatchArray:
  """One array of a training example; that of a batch has an axis of samples before the others.

  Attributes:
    axes: what each axis counts.
    dtype: of its numbers.
  """

  axes: tuple[str, ...]
  dtype: type[np.generic]

  @property
  def is_volume(self) -> bool:
    """Whether it has a value for each voxel of the patch; depth is then its first axis."""
    return self.axes[0] == 'depth'


_VOXELS = 'depth', 'height', 'width'
# Image in [0, 1], one channel for each HU window; label codes of the template; whether the case's
# dataset labels each class; whether its scan cannot show it; frame, of which patch
# voxel (i, j, k) lies at height frame[:3] . (i, j, k) + frame[3] in mm above the centre of the
# scan's lowest slice; the lowest and the highest such height where each class was contoured.
BATCH = {
  'image': BatchArray((*_VOXELS, 'window'), np.float32),
  'label': BatchArray(_VOXELS, np.uint8),
  'supervised': BatchArray(('class',), np.bool_),
  'absent': BatchArray(('class',), np.bool_),
  'frame': BatchArray(('coefficient',), np.float32),
  'slice_range': BatchArray(('class', 'bound'), np.float32),
}


def shapes(patch: Sequence[int], *, windows: int, classes: int) -> dict[str, tuple[int, ...]]:
  """Shape of each array of an example.

  Args:
    patch: (3,) voxels.
    windows: HU windows.
    classes: K.
  """
  sizes = dict(zip(_VOXELS, patch, strict=True))
  sizes |= {'window': windows, 'class': classes, 'coefficient': 4, 'bound': 2}
  return {name: tuple(sizes[axis] for axis in array.axes) for name, array in BATCH.items()}
