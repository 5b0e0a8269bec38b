"""Where a layer lies that another plugin has read: told by the file, if its voxels are the layer's.

Readers differ in the order and direction of axes, and some leave out where a scan lies at all. The
file says it, once it is known how the layer's axes are turned against it.
"""

import itertools
import os
from collections.abc import Iterator

import numpy as np
from nibabel import orientations

from input_pipeline.ct import volume
from mome_jax.errors import UserError
from mome_jax.predict import find_scans
from mome_jax.predict.find_scans import LoadedScan

_FEW = 4096  # voxels that are compared first


def find(array: np.ndarray, path: str | os.PathLike) -> tuple[LoadedScan, np.ndarray] | None:
  """The scan of a file, if it has the voxels of an array.

  Args:
    array: of three axes, in any order and direction.
    path: of the file or folder.

  Returns:
    The scan, and (4, 4): voxel indices of the array -> mm to right, anterior, superior. None if it
    cannot be read, or is another one.
  """
  try:
    scans, _ = find_scans.find_scans([path])
    if len(scans) != 1:
      return None
    loaded = find_scans.read(scans[0])
    array = volume.to_hu(array, path)
  except UserError:
    return None
  held = loaded.volume.array
  step = max(1, array.size // _FEW)
  for turn in _turns():
    turned = orientations.apply_orientation(held, turn)
    if turned.shape != array.shape or not np.array_equal(turned.flat[::step], array.flat[::step]):
      continue
    if np.array_equal(turned, array):
      back = orientations.inv_ornt_aff(turn, held.shape)
      return loaded, loaded.volume.geometry.canonical_affine @ back
  return None


def _turns() -> Iterator[np.ndarray]:
  """All 48 ways to permute and flip three axes, as nibabel has them."""
  for order in itertools.permutations(range(3)):
    for signs in itertools.product((1, -1), repeat=3):
      yield np.array(list(zip(order, signs, strict=True)))
