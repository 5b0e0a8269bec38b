"""Probability maps: one file a class, on the scan's grid."""

import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.ct import volume
from mome_jax.inference.slabs import Planes
from mome_jax.predict import output_names
from mome_jax.predict.request import Target

# The float32 below 1 / 255, since 255 times the nearest one is above 1.
_SLOPE = float(np.nextafter(np.float32(1 / 255), np.float32(0)))
_CHUNK = 1 << 24  # bytes


class ProbabilityMaps:
  """Probabilities of K classes on the scan's grid, kept on disk while they are made.

  Args:
    folder: for the temporary file.
    scan: gives the grid.
    columns: K indices of the classes of a segmenter.

  Raises:
    OSError: if there is no room for them.
  """

  def __init__(self, folder: pathlib.Path, scan: volume.Volume, columns: Sequence[int]):
    self._geometry = scan.geometry
    self._columns = columns
    self._path = folder / 'probabilities.raw'
    shape = (len(columns), *scan.array.shape)
    try:
      _reserve(self._path, math.prod(shape))
    except OSError:  # what was taken of a full disk is missed by all else
      self._path.unlink(missing_ok=True)
      raise
    self._maps = np.memmap(self._path, np.uint8, mode='r+', shape=shape)

  def add(self, slab: Planes) -> None:
    """Takes the logits of some planes."""
    for k, values in zip(self._columns, self._maps, strict=True):
      chance = 1 / (1 + np.exp(-np.clip(slab.logits(k), -30, 30)))
      values[slab.planes] = np.rint(255 * chance)

  def write(self, folder: pathlib.Path, targets: Sequence[Target]) -> None:
    """Writes one uint8 file a class, 255 for 1 (its header says so), and removes the raw one.

    Args:
      folder: to make.
      targets: K.

    Raises:
      OSError: if it cannot be written.
    """
    try:
      folder.mkdir()
      for target, values in zip(targets, self._maps, strict=True):
        path = folder / output_names.of_class(target)
        volume.write_nifti(path, np.asarray(values), self._geometry, np.uint8, slope=_SLOPE)
    finally:
      del self._maps
      self._path.unlink()


def _reserve(path: pathlib.Path, size: int) -> None:
  """Makes a file of `size` zeros with room on the disk: a full one shows now, not at some voxel."""
  with path.open('wb') as file:
    if hasattr(os, 'posix_fallocate'):
      os.posix_fallocate(file.fileno(), 0, size)
      return
    for start in range(0, size, _CHUNK):  # macOS has no such call
      file.write(bytes(min(_CHUNK, size - start)))
