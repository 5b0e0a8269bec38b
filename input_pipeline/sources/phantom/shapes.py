"""Signed distances, random smooth fields and the canvas on which `phantom` draws.

Points are arrays (3, ...) float32 of atlas coordinates in mm; distances are mm, negative inside.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Box = tuple[slice, ...]
Blob = tuple[ArrayLike, ArrayLike, ArrayLike]  # centre, radii, degrees
Field = Callable[[np.ndarray], np.ndarray]

_WARP_REACH = 9.0  # mm; no point is moved further by a canvas's warp
_TUBE_REACH = 4.0  # mm beyond a tube's surface to which its distance is computed


def smooth_max(width: float, first: np.ndarray, *others: np.ndarray) -> np.ndarray:
  """Intersection of shapes; where two meet, the edge is rounded over `width` mm."""
  for other in others:
    blend = np.maximum(width - np.abs(first - other), 0.0)
    first = np.maximum(first, other) + blend * blend / (4 * width)
  return first


def smooth_min(width: float, *distances: np.ndarray) -> np.ndarray:
  """Union of shapes with fillets of `width` mm."""
  return -smooth_max(width, *(-d for d in distances))


def ellipsoid(p: np.ndarray, blob: Blob) -> np.ndarray:
  """First-order distance of points (3, ...) to an ellipsoid, turned about x, then y, then z."""
  from scipy.spatial.transform import Rotation  # slow to import

  center, radii, degrees = blob
  turn = Rotation.from_euler('xyz', degrees, degrees=True).as_matrix().astype(np.float32)
  half_axes = column(radii, p)
  q = p - column(center, p)
  q = np.stack([_dot(axis, q) for axis in turn.T]) / half_axes
  k = np.sqrt((q * q).sum(0)) + 1e-3
  q /= half_axes
  return k * (k - 1) / (np.sqrt((q * q).sum(0)) + 1e-6)


def column(values: ArrayLike, p: np.ndarray) -> np.ndarray:
  """Three values as float32 that broadcast against points (3, ...)."""
  return np.asarray(values, np.float32).reshape((3,) + (1,) * (p.ndim - 1))


def _dot(v: np.ndarray, p: np.ndarray) -> np.ndarray:
  # NOTE: no BLAS, whose threads cost more than they gain here and whose sums depend on the machine.
  return v[0] * p[0] + v[1] * p[1] + v[2] * p[2]


def waves(rng: np.random.Generator, amplitude: float, wavelength: float, n: int = 4) -> Field:
  """A random smooth scalar field of `n` plane waves, `wavelength` mm long.

  Its standard deviation is `amplitude`. As a formula it has the same values on any grid.
  """
  vectors = rng.normal(size=(n, 3))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors *= 2 * np.pi / (wavelength * rng.uniform(0.8, 1.4, (n, 1)))
  vectors, phases = vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, n).astype(np.float32)
  gain = np.float32(amplitude * np.sqrt(2 / n))

  def field(p: np.ndarray) -> np.ndarray:
    return gain * sum(np.sin(_dot(v, p) + t) for v, t in zip(vectors, phases, strict=True))

  return field


def curve(controls: ArrayLike, step: float = 9.0) -> np.ndarray:
  """Samples (n, 4), `step` mm apart, of the smooth curve through control points x, y, z, radius."""
  from scipy import interpolate  # slow to import

  points = np.asarray(controls, float)
  at = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))]
  samples = np.linspace(0, at[-1], max(2, int(at[-1] / step) + 1))
  return interpolate.PchipInterpolator(at, points)(samples)


def tree(
  rng: np.random.Generator, root: ArrayLike, ahead: ArrayLike, shape: tuple[float, float, int]
) -> list[np.ndarray]:
  """Branching vessel that leaves `root` in the direction `ahead`.

  Args:
    rng: decides lengths, radii and directions.
    root: (3,) mm.
    ahead: (3,), of any length but 0.
    shape: length and radius of the stem in mm, number of generations.

  Returns:
    Segments (2, 4): x, y, z and radius of both ends.
  """
  length, radius, generations = shape
  start, way = np.asarray(root, float), np.asarray(ahead, float)
  way = way / np.linalg.norm(way)
  end = start + way * length * rng.uniform(0.7, 1.2)
  segments = [np.array([[*start, radius], [*end, radius * 0.85]])]
  if generations > 1:
    side = np.cross(way, rng.normal(size=3))
    side /= np.linalg.norm(side)
    for sign in (-1, 1):
      turned = way + sign * rng.uniform(0.4, 0.9) * side
      child = (length * 0.84, radius * rng.uniform(0.72, 0.86), generations - 1)
      segments += tree(rng, end, turned, child)
  return segments


def capsule(p: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Distance to the round segment a-b of (x, y, z, radius), and y of the nearest axis point."""
  a, b = a.astype(np.float32), b.astype(np.float32)
  q, axis = p - column(a[:3], p), b[:3] - a[:3]
  t = (_dot(axis, q) / (axis @ axis + 1e-6)).clip(0, 1)
  q -= column(axis, p) * t
  return np.sqrt((q * q).sum(0)) - (a[3] + t * (b[3] - a[3])), a[1] + t * axis[1]


class Canvas:
  """Image and codes under construction, with the atlas coordinates of every voxel.

  Attributes:
    image: (D, H, W) float32 HU, air at first. codes: (D, H, W) uint8, 0 at first.
    mm: (3, D, H, W) the patient's coordinates. p: (3, D, H, W) atlas coordinates.
    spacing: (3,) mm. whole: the box of all voxels.
  """

  def __init__(self, extent: np.ndarray, spacing: np.ndarray, scale: np.ndarray, warp: Sequence):
    """Covers `extent`, (2, 3) mm of the patient, whose atlas is stretched by `scale` and bent."""
    shape = np.maximum(np.round((extent[1] - extent[0]) / spacing), 1).astype(int)
    offsets = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, spacing, strict=True)]
    self._axes = [mid + offset for mid, offset in zip(extent.mean(0), offsets, strict=True)]
    self._scale, self.spacing = scale, spacing
    self.mm = np.stack(np.meshgrid(*self._axes, indexing='ij')).astype(np.float32)
    bend = np.stack([wave(self.mm) for wave in warp]).clip(-_WARP_REACH, _WARP_REACH)
    self.p = (self.mm + bend) / column(scale, self.mm)
    self.image = np.full(shape, -1000.0, np.float32)
    self.codes = np.zeros(shape, np.uint8)
    self.whole = (slice(None),) * 3

  def box(self, low: ArrayLike, high: ArrayLike) -> Box:
    """Slices that hold the atlas box, however the patient is bent."""
    reach = _WARP_REACH + self.spacing
    first, last = np.multiply(low, self._scale) - reach, np.multiply(high, self._scale) + reach
    ends = zip(self._axes, first, last, strict=True)
    return tuple(slice(*np.searchsorted(axis, (lo, hi))) for axis, lo, hi in ends)

  def blob_box(self, blob: Blob) -> Box:
    """Slices that hold the ellipsoid and 8 mm around it."""
    reach = np.max(blob[1]) + 8.0
    return self.box(np.subtract(blob[0], reach), np.add(blob[0], reach))

  def at(self, box: Box) -> np.ndarray:
    """Atlas coordinates (3, ...) of the box's voxels."""
    return np.ascontiguousarray(self.p[(slice(None), *box)])

  def paint(
    self, box: Box, distance: np.ndarray, hu: float | np.ndarray, code: int | None = 0
  ) -> None:
    """Covers what lies inside `distance`; code None leaves the labels as they are."""
    cover = (0.5 - distance / np.float32(self.spacing.mean())).clip(0, 1)
    view = self.image[box]
    view += cover * (hu - view)
    if code is not None:
      self.codes[box][cover > 0.5] = code

  def tube(self, parts: Sequence[np.ndarray], box: Box | None = None) -> tuple:
    """Union of polylines (n, 4) of x, y, z, radius, within `box` or the box that they need.

    Returns:
      The box; distance to the surface, 1e3 where it is far; y (atlas mm) of the nearest axis point.
    """
    points = np.concatenate(parts)
    margin = _TUBE_REACH + self.spacing.mean() / 2
    reach = points[:, 3].max() + margin
    box = box or self.box(points[:, :3].min(0) - reach, points[:, :3].max(0) + reach)
    distance = np.full(self.image[box].shape, 1e3, np.float32)
    axis_y = np.zeros_like(distance)
    for a, b in ((a, b) for part in parts for a, b in zip(part[:-1], part[1:], strict=True)):
      reach = max(a[3], b[3]) + margin
      near = self.box(np.minimum(a, b)[:3] - reach, np.maximum(a, b)[:3] + reach)
      near, local = _overlap(near, box)
      surface, y = capsule(self.at(near), a, b)
      closer = surface < distance[local]
      distance[local][closer], axis_y[local][closer] = surface[closer], y[closer]
    return box, distance, axis_y


def _overlap(inner: Box, outer: Box) -> tuple[Box, Box]:
  """What `inner` shares with `outer`, as slices of the canvas and of the outer box."""
  starts = [max(i.start, o.start) for i, o in zip(inner, outer, strict=True)]
  stops = [max(n, min(i.stop, o.stop)) for n, i, o in zip(starts, inner, outer, strict=True)]
  ends = list(zip(starts, stops, [o.start for o in outer], strict=True))
  return tuple(slice(n, m) for n, m, _ in ends), tuple(slice(n - o, m - o) for n, m, o in ends)
