"""Image and label of a patch that is turned or deformed, read at the same places of a scan."""

from collections.abc import Sequence

import numpy as np

_AT_ONCE = 2**14  # voxels whose numbers stay in a processor's cache


def deform(
  image: np.ndarray,
  label: np.ndarray,
  matrix: np.ndarray,
  origin: np.ndarray,
  shifts: np.ndarray | None,
  shape: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
  """A patch from the box of a scan around it: voxel v is at matrix @ v + origin + shifts[:, v].

  The image is interpolated linearly, the label is that of the nearest voxel, of two equally near
  ones the upper: what scipy's `map_coordinates` gives with orders 1 and 0, in a third of its time.

  Args:
    image: (A, B, C) HU of the box, which has a voxel above the last place along each axis.
    label: (A, B, C) uint8 codes.
    matrix: (3, 3).
    origin: (3,), in voxels of the box.
    shifts: (3, D, H, W) voxels, or None.
    shape: (3,) of the patch.

  Returns:
    (D, H, W) float32 HU and (D, H, W) uint8.
  """
  patch, codes = np.empty(shape, np.float32), np.empty(shape, np.uint8)
  step = max(1, _AT_ONCE // (shape[1] * shape[2]))
  for first in range(0, shape[0], step):
    part = slice(first, min(first + step, shape[0]))
    places = _places(matrix, origin, part, shape)
    if shifts is not None:
      places = [place + shift[part] for place, shift in zip(places, shifts, strict=True)]
    lower = [place.astype(np.int32) for place in places]
    parts = [(p - low).astype(np.float32) for p, low in zip(places, lower, strict=True)]
    nearest = [low + (share >= 0.5) for low, share in zip(lower, parts, strict=True)]
    patch[part] = _interpolate(image, _flat(lower, image.shape), parts)
    codes[part] = label.ravel().take(_flat(nearest, image.shape))
  return patch, codes


def _places(
  matrix: np.ndarray, origin: np.ndarray, part: slice, shape: Sequence[int]
) -> list[np.ndarray]:
  """Of each axis of the scan, where the voxels of a slab of the patch lie: (d, H, W) float64."""
  x, y, z = np.ogrid[part, : shape[1], : shape[2]]
  return [
    (row[0] * x + at + row[1] * y) + row[2] * z for row, at in zip(matrix, origin, strict=True)
  ]


def _flat(index: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  return (index[0] * shape[1] + index[1]) * shape[2] + index[2]


def _interpolate(image: np.ndarray, lower: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
  """Between the eight voxels around each place, the lowest of which has the flat index `lower`."""
  values = image.ravel()
  _, rows, columns = image.shape

  def along(axis: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    high -= low
    high *= parts[axis]
    low += high
    return low

  def line(offset: int) -> np.ndarray:
    ends = (values.take(lower + at).astype(np.float32) for at in (offset, offset + 1))
    return along(2, *ends)

  faces = (along(1, line(offset), line(offset + columns)) for offset in (0, rows * columns))
  return along(0, *faces)
