"""What is the patient in a scan: one threshold, and what follows from it.

NOTE: `fingerprint` has a threshold of its own, Otsu's: what it compares may hold HU with an offset.
"""

from collections.abc import Sequence

import numpy as np

AIR_HU = -900.0  # less is air without tissue; lungs have more on average
_AROUND = 5  # voxels along the square whose mean that is
BODY_HU = -500.0  # denser is tissue, bone or couch; between air and fat, but for partial volumes


def is_dense(image: np.ndarray) -> np.ndarray:
  """HU of any shape -> bool of that shape: what is not air, around the patient or inside."""
  return image > BODY_HU


def patient(image: np.ndarray) -> np.ndarray:
  """The patient without the couch: the largest dense part, with lungs and bowel filled.

  Args:
    image: (D, H) or (D, H, W) HU; in a volume, holes are filled in each axial slice.

  Returns:
    The image's shape, bool; nothing where nothing is dense.
  """
  from scipy import ndimage  # slow to import

  parts, _ = ndimage.label(is_dense(image))
  largest = np.bincount(parts.ravel())[1:].argmax() + 1 if parts.any() else 0
  part = (parts == largest) & (parts > 0)
  if image.ndim == 2:
    return ndimage.binary_fill_holes(part)
  return np.stack([ndimage.binary_fill_holes(plane) for plane in part.transpose(2, 0, 1)], -1)


def outside(image: np.ndarray) -> np.ndarray:
  """What lies around patient and couch: air that nothing encloses within an axial slice.

  Open nostrils and mouths belong to it. Lung that the border of the scan, or of a round field of
  view, cuts open does not: around a voxel of lung its mean tells which it is.

  Args:
    image: (D, H, W) HU.

  Returns:
    (D, H, W) bool.
  """
  around = np.zeros(image.shape, bool)
  for z in range(image.shape[2]):
    around[..., z] = _outside(image[..., z])
  return around


def _outside(plane: np.ndarray) -> np.ndarray:
  """`outside` of one axial slice (D, H)."""
  from scipy import ndimage  # slow to import

  thin = ~is_dense(plane)
  share = ndimage.uniform_filter(thin.astype(np.float32), _AROUND)
  total = ndimage.uniform_filter(np.where(thin, plane, 0).astype(np.float32), _AROUND)
  parts, number = ndimage.label(thin & (total < AIR_HU * share))
  edge = np.zeros(number + 1, bool)
  for line in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
    edge[line] = True
  edge[0] = False  # what is dense
  return edge[parts]


def midline(image: np.ndarray, slices: np.ndarray | None = None) -> float:
  """The plane between left and right along axis 0, voxels: half of what is dense on either side.

  Args:
    image: (D, H, W) HU.
    slices: (W,) bool, where to look along axis 2; everywhere by default.

  Returns:
    The middle of the grid where nothing is dense.
  """
  if slices is not None and slices.any():
    image = image[:, :, slices]
  weight = is_dense(image).sum((1, 2)).cumsum()
  if not weight[-1]:
    return (image.shape[0] - 1) / 2
  # Where half of the tissue is reached, between voxel edges.
  at = int(np.searchsorted(weight, weight[-1] / 2))
  before = weight[at - 1] if at else 0
  return float(at - 0.5 + (weight[-1] / 2 - before) / (weight[at] - before))


def box(mask: np.ndarray, margin: Sequence[int] | None = None) -> tuple[slice, ...]:
  """Slices around what is True in a mask; all of it where nothing is.

  Args:
    mask: bool of N axes.
    margin: N numbers of voxels to keep around it; none by default. The border of the mask cuts it.

  Returns:
    N slices.
  """
  slices = []
  for axis, extra in enumerate(margin or (0,) * mask.ndim):
    used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
    low, high = (used[0], used[-1]) if used.size else (0, mask.shape[axis] - 1)
    slices.append(slice(max(0, int(low) - extra), min(int(high) + extra + 1, mask.shape[axis])))
    mask = mask[(slice(None),) * axis + (slice(low, high + 1),)]
  return tuple(slices)
