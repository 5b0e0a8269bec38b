"""Scans to bricks: the spacing of the network, aligned cubes without those of nothing but air."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline import sources
from input_pipeline.anatomy import OUTSIDE_CODE
from input_pipeline.ct import body, resample, volume


def cut(
  image: np.ndarray, codes: np.ndarray, brick: int
) -> Iterator[tuple[tuple[int, int, int], np.ndarray, np.ndarray]]:
  """Cuts a scan into aligned cubes; those of nothing but air around the patient are left out.

  Args:
    image: (D, H, W) int16 HU.
    codes: (D, H, W) uint8.
    brick: edge, voxels; the last cubes are padded with air that is outside the patient.

  Yields:
    position of the first voxel (3,), image and codes (brick, brick, brick).
  """
  depth, height, width = (range(0, n, brick) for n in image.shape)
  for position in itertools.product(depth, height, width):
    inside = tuple(slice(p, p + brick) for p in position)
    if image[inside].max() <= body.AIR_HU and (codes[inside] == OUTSIDE_CODE).all():
      continue
    pad = [(0, brick - n) for n in image[inside].shape]
    yield (
      position,
      np.pad(image[inside], pad, constant_values=volume.AIR),
      np.pad(codes[inside], pad, constant_values=OUTSIDE_CODE),
    )


def to_spacing(
  scan: sources.Scan, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
  """Brings a scan to the spacing of the network, and tells what is outside the patient.

  Args:
    scan: on its own grid.
    spacing: (3,) mm.

  Returns:
    image (D, H, W) int16 HU, codes (D, H, W) uint8, OUTSIDE_CODE in what is `body.outside` and no
    class, and the offset (3,) mm of `CaseInfo`.
  """
  before = scan.geometry.spacing
  image = to_int16(resample.resample(scan.image, before, spacing, order=1))
  codes = resample.resample(scan.codes, before, spacing, order=0)
  codes[(codes == 0) & body.outside(image)] = OUTSIDE_CODE
  # The grids share their centre.
  offset = ((np.array(scan.image.shape) - 1) * before - (np.array(image.shape) - 1) * spacing) / 2
  return image, codes, triple(offset.tolist())


def to_int16(image: np.ndarray) -> np.ndarray:
  """HU as they are stored: rounded, and clipped to -1024..32767."""
  return np.clip(np.rint(image), volume.AIR, 32767).astype(np.int16)


def triple(numbers: Sequence[float]) -> tuple[float, float, float]:
  """One number for each axis; ValueError if there are not three."""
  x, y, z = numbers
  return x, y, z
