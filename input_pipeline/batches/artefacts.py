"""What a scanner adds to a patient: streaks of metal, thick slices."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.ct import volume

_DENSE = 900.0  # HU of what casts streaks: teeth, metal, undiluted contrast medium
_CORE = 4.0  # mm around it, within which streaks are no stronger


def streaks(
  rng: np.random.Generator, image: np.ndarray, strength: float, spacing: Sequence[float]
) -> np.ndarray:
  """Bright and dark rays in a few axial slices, from the densest voxel or else from anywhere.

  They weaken with the distance, as rays spread: 1 / r. The padding beyond a scan has none.

  Args:
    rng: source of randomness.
    image: (D, H, W) float32 HU; left as it is.
    strength: HU of the strongest ray at 20 mm.
    spacing: (3,) mm.

  Returns:
    (D, H, W) float32 HU.
  """
  depth, height, slices = image.shape
  densest = np.unravel_index(int(image.argmax()), image.shape)
  anywhere = [int(rng.integers(n)) for n in image.shape]
  x, y, z = densest if image[densest] > _DENSE else anywhere
  half = max(1, round(rng.uniform(3, 12) / spacing[2]))  # slices to either side
  low, high = max(z - half, 0), min(z + half + 1, slices)
  dx = ((np.arange(depth) - x) * spacing[0]).astype(np.float32)[:, None]
  dy = ((np.arange(height) - y) * spacing[1]).astype(np.float32)[None]
  radius = np.sqrt(dx**2 + dy**2)
  rays = _rays(rng, high - low)
  turn = (np.arctan2(dy, dx) / (2 * np.pi) * len(rays)).astype(np.int32) % len(rays)
  fade = 1 - np.abs(np.arange(low, high) - z) / (half + 1)
  added = rays[turn] * (strength * 20 / np.maximum(radius, _CORE))[..., None]
  changed = image.copy()
  part = changed[:, :, low:high]
  np.add(part, added * fade.astype(np.float32), out=part, where=part > volume.AIR + 1)
  return np.maximum(changed, volume.AIR, out=changed)


def _rays(rng: np.random.Generator, slices: int) -> np.ndarray:
  """(360, slices) float32 in [-1, 1] by angle: few broad rays and many fine ones, and their rest.

  Neighbouring slices share the broad ones. A ray is seen on both sides of what casts it.
  """
  angles = np.arange(360) * (2 * np.pi / 360)
  rays = np.zeros((360, slices))
  for count, per_slice in ((2, False), (6, False), (14, True), (30, True)):
    phases = rng.uniform(0, 2 * np.pi, slices if per_slice else 1)
    rays += rng.normal() * np.cos(count * angles[:, None] + phases)
  rays = np.sign(rays) * rays**2  # most directions have little, a few much
  return (rays / np.abs(rays).max()).astype(np.float32)


def thick_slices(image: np.ndarray, thickness: float, offset: float) -> np.ndarray:
  """The axial slices that a scan of thicker ones would have had, interpolated.

  Each thick slice is the mean of what lies in it; between their centres values are linear, as
  preparation makes them.

  Args:
    image: (D, H, W) float32 HU; left as it is.
    thickness: voxels of a thick slice, above 1.
    offset: part of a thick slice, in [0, 1), at which the first begins.

  Returns:
    (D, H, W) float32 HU.
  """
  return image @ _thickening(image.shape[2], thickness, offset).T


def _thickening(slices: int, thickness: float, offset: float) -> np.ndarray:
  """(slices, slices) float32: what each slice gives to each."""
  starts = np.arange(-offset * thickness, slices, thickness)
  # Slice i covers [i, i + 1): its part in every thick slice.
  edges = np.arange(slices)
  covered = np.minimum(edges + 1, starts[:, None] + thickness) - np.maximum(edges, starts[:, None])
  means = np.maximum(covered, 0)
  kept = means.sum(1) > 1e-6
  means = means[kept] / means[kept].sum(1, keepdims=True)
  at = np.arange(slices) + 0.5
  centres = means @ at  # of what lies in the patch, or the image would slide under its labels
  mix = np.stack([np.interp(at, centres, row) for row in np.eye(len(centres))], 1)
  return (mix @ means).astype(np.float32)
