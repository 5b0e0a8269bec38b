"""What the grid of a scan must be, whatever file it comes from."""

import math
import os
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from input_pipeline import remarks
from input_pipeline.errors import UserError

FIX = 'convert it from the original again, or predict with --assume-spacing X,Y,Z'
_LONGEST = 3000  # mm; no scanner's table moves further


class VolumeError(UserError):
  """A scan that cannot be used; one line with the file, the offending value and the fix."""


def check_shape(shape: Sequence[int], name: str | os.PathLike) -> None:
  """VolumeError if an array is not of one volume."""
  if len(shape) < 3 or min(shape[:3]) < 2:
    raise VolumeError(f'{name}: shape {shape} is not 3D; pass the whole scan')
  if any(n != 1 for n in shape[3:]):
    last = math.prod(shape[3:]) - 1
    raise VolumeError(
      f'{name}: shape {shape} holds several volumes; save one on its own, or predict with '
      f'--volume 0 to {last}'
    )


def check_number(shape: Sequence[int], number: int | None, path: str | os.PathLike) -> None:
  """VolumeError if an array (X, Y, Z, ...) has no such volume; None stands for the only one."""
  check_shape(shape[:3] if number is not None else shape, path)
  volumes = math.prod(shape[3:])
  if number is not None and not 0 <= number < volumes:
    raise VolumeError(f'{path}: has no volume {number}; --volume can be 0..{volumes - 1}')


def one_of(array: np.ndarray, number: int | None, path: str | os.PathLike) -> np.ndarray:
  """A volume (X, Y, Z) of an array that may hold several; errors as `check_number`."""
  check_number(array.shape, number, path)
  return array.reshape(*array.shape[:3], -1)[..., number or 0]


def sizes(spacing: Sequence[float]) -> tuple[float, ...]:
  """Three voxel sizes in mm as Python's numbers; VolumeError if they are none."""
  try:
    made = tuple(float(mm) for mm in spacing)
  except (TypeError, ValueError):
    made = ()
  if len(made) != 3 or not all(0 < mm < math.inf for mm in made):  # a negative one mirrors the scan
    raise VolumeError(f'assume_spacing={spacing!r}: expected three mm above 0, as (0.8, 0.8, 5)')
  return made


def check_affine(affine: np.ndarray, name: str | os.PathLike, fix: str = FIX) -> None:
  """VolumeError if voxels lie nowhere (4, 4 affine to mm), or have sizes that no scanner makes."""
  if affine.shape != (4, 4) or not np.isfinite(affine).all():
    raise VolumeError(f'{name}: affine {affine.tolist()} is not a finite 4x4 matrix; {fix}')
  if np.abs(affine[:3, 3]).max() > 1e5:
    far = affine[:3, 3].tolist()
    raise VolumeError(f'{name}: the origin {far} mm lies over 100 m away; {fix}')
  spacing = nib.affines.voxel_sizes(affine)
  # The determinant relative to the spacing is 1 for right angles and 0 for axes in one plane.
  angle = abs(np.linalg.det(affine[:3, :3])) / max(spacing.prod(), 1e-30)
  if spacing.min() < 1e-4 or angle < 1e-3:
    raise VolumeError(f'{name}: affine {affine[:3].round(4).tolist()} is singular; {fix}')
  if spacing.min() < 0.01 or spacing.max() > 100:
    raise VolumeError(f'{name}: spacing {spacing.tolist()} is outside 0.01 to 100 mm; {fix}')
  if angle < 0.999:
    remarks.tell(f'{name}: axes are not at right angles; distances are approximate')


def check_extent(
  shape: Sequence[int], affine: np.ndarray, name: str | os.PathLike, fix: str = FIX
) -> None:
  """VolumeError if an array is longer than any scanner's table moves."""
  spacing = nib.affines.voxel_sizes(affine)
  extents = spacing * shape
  axis = extents.argmax()
  if extents[axis] > _LONGEST:
    length, count, size = extents[axis] / 1000, shape[axis], spacing[axis]
    raise VolumeError(f'{name}: is {length:.1f} m long ({count} voxels of {size:g} mm); {fix}')
