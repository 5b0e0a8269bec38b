"""What a scan and the masks in it look like: size, density, place in the body, surroundings."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from input_pipeline.ct import body, resample
from input_pipeline.ct.components import components

FINEST_MM = 3.0  # no measure needs a finer grid, and lungs at 0.7 mm would take minutes
TISSUES = ('outside', 'air', 'fat', 'soft', 'bone')  # outside the patient, and in it by HU:
_DENSER = (-400.0, -20.0, 200.0)  # than air, than fat, than soft tissue
SHELLS_MM = ((0.0, 10.0), (10.0, 30.0))  # around a mask
_SECTION_CM2 = 4.0  # less of a patient in a slice is a finger tip, or noise
_PLANES = 16  # of a scan, resampled at a time

SURROUNDINGS = tuple(
  f'{tissue}_{low:.0f}_{high:.0f}_mm' for low, high in SHELLS_MM for tissue in TISSUES
)
MASK = ('volume_ml', 'section_mm2', 'mean_hu', 'hu_sd', 'largest_piece', 'right', 'anterior',
        'body_cm2', *SURROUNDINGS)  # fmt: skip
SCAN = ('section_cm2', 'slimmest_cm2', 'air', 'fat', 'bone')


@dataclasses.dataclass(frozen=True)
class Look:
  """What one mask looks like.

  Attributes:
    values: of `MASK`: volume, ml; volume over height, mm2; mean and standard deviation of HU; share
      of the volume in the largest 26-connected piece; how far right and anterior of the middle of
      the patient's axial sections it lies, in standard deviations of their area; that area, cm2;
      and of what lies within 10 mm, and from 10 to 30 mm, the share of each of `TISSUES`.
    centre: (3,) mm to the right, anterior and superior of the scan's centre.
    course: slice of the grid -> (2,) mm, its middle there to the right and anterior likewise.
    cut: whether it reaches the end of the field of view: there may be more of it.
  """

  values: Mapping[str, float]
  centre: tuple[float, ...]
  course: Mapping[int, np.ndarray]
  cut: bool

  def offset(self, other: 'Look') -> np.ndarray:
    """(3,) mm from here to another mask of the scan: to the right, anterior and superior.

    The first two are compared slice by slice where both are: the middle of a cord or a gullet
    depends on how much of its curve was scanned.
    """
    offset = np.subtract(other.centre, self.centre)
    shared = self.course.keys() & other.course.keys()
    if shared:
      offset[:2] = np.mean([other.course[z] - self.course[z] for z in shared], 0)
    return offset


class Scene:
  """A scan in which masks are measured.

  Args:
    image: (D, H, W) HU, canonical axis order.
    spacing: (3,) mm.
    grid: (3,) mm to measure on; its own, but not below `FINEST_MM`, by default.

  Attributes:
    grid: (3,) mm.
    values: of `SCAN`: median and 10 % quantile of the patient's axial sections, cm2; and the shares
      of air, fat and bone in the patient. None where no patient is to be seen.
    seen: (3, 2) mm from the scan's centre: where the slices with the patient, and the grid along
      the other axes, begin and end.
  """

  def __init__(
    self,
    image: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    grid: Sequence[float] | None = None,
  ):
    self._before = tuple(float(mm) for mm in spacing)
    self.grid = tuple(max(mm, FINEST_MM) for mm in self._before) if grid is None else tuple(grid)
    self._hu = image if self.grid == self._before else _coarser(image, self._before, self.grid)
    patient = body.patient(self._hu)
    self._tissue = np.where(patient, 1 + np.digitize(self._hu, _DENSER), 0).astype(np.uint8)
    self._area = patient.sum((0, 1)) * self.grid[0] * self.grid[1] / 100
    used = np.flatnonzero(self._area > _SECTION_CM2)
    self._slices = slice(used[0], used[-1] + 1) if used.size else slice(0, 0)
    self._middle, self._spread = _sections(patient, self.grid)
    self.values = self._describe() if used.size else None
    ends = np.array([[0, n] for n in self._hu.shape], float)
    ends[2] = self._slices.start, self._slices.stop
    self.seen = (ends - np.array(self._hu.shape)[:, None] / 2) * np.array(self.grid)[:, None]

  def sample(self, labels: np.ndarray) -> np.ndarray:
    """A mask or label map of the scan, on the grid that is measured on."""
    if self.grid == self._before:
      return labels
    return resample.resample(labels, self._before, self.grid, order=0)

  def look(self, mask: np.ndarray) -> Look | None:
    """Measures a mask, (D, H, W) bool as of `sample`; None without voxels where the patient is.

    What spills over the last slice with the patient is left out: nothing is to be measured there.
    """
    shown = np.zeros_like(mask)
    shown[:, :, self._slices] = mask[:, :, self._slices]
    mask = shown
    if not mask.any():
      return None
    box = body.box(mask, [int(SHELLS_MM[-1][1] / mm) + 1 for mm in self.grid])
    inner = mask[box]
    voxels = np.argwhere(inner) + [span.start for span in box]
    heights = voxels[:, 2]
    millilitres = len(voxels) * float(np.prod(self.grid)) / 1000
    hu = self._hu[box][inner].astype(np.float64)
    mm = voxels[:, :2] * np.array(self.grid[:2])
    place = ((mm - self._middle[heights]) / self._spread[heights]).mean(0)
    labels, _ = components(inner)
    values = {
      'volume_ml': millilitres,
      'section_mm2': 1000 * millilitres / (len(np.unique(heights)) * self.grid[2]),
      'mean_hu': float(hu.mean()),
      'hu_sd': float(hu.std()),
      'largest_piece': float(np.bincount(labels[inner]).max() / len(voxels)),
      'right': float(place[0]),
      'anterior': float(place[1]),
      'body_cm2': float(self._area[heights].mean()),
      **self._around(inner, box),
    }
    places = (voxels - (np.array(mask.shape) - 1) / 2) * self.grid
    course = {int(z): places[heights == z, :2].mean(0) for z in np.unique(heights)}
    return Look(values, tuple(places.mean(0).tolist()), course, self._is_cut(voxels))

  def _describe(self) -> dict[str, float]:
    area = self._area[self._slices]
    tissue = np.bincount(self._tissue[:, :, self._slices].ravel(), minlength=len(TISSUES))[1:]
    shares = dict(zip(TISSUES[1:], (tissue / tissue.sum()).tolist(), strict=True))
    return {
      'section_cm2': float(np.median(area)),
      'slimmest_cm2': float(np.quantile(area, 0.1)),
      **{name: shares[name] for name in SCAN[2:]},
    }

  def _around(self, inner: np.ndarray, box: tuple[slice, ...]) -> dict[str, float]:
    """Shares of the tissues in each shell, of what the scan shows of it."""
    distance = ndimage.distance_transform_edt(~inner, self.grid)
    heights = np.arange(box[2].start, box[2].stop)
    shown = (heights >= self._slices.start) & (heights < self._slices.stop)
    shares = []
    for low, high in SHELLS_MM:
      shell = (distance > low) & (distance <= high) & shown
      counts = np.bincount(self._tissue[box][shell], minlength=len(TISSUES))
      shares += (counts / max(1, counts.sum())).tolist()
    return dict(zip(SURROUNDINGS, shares, strict=True))

  def _is_cut(self, voxels: np.ndarray) -> bool:
    """Whether a mask reaches the last slice with the patient in it, or a side of the grid."""
    low, high = voxels.min(0), voxels.max(0)
    ends = low[2] <= self._slices.start or high[2] >= self._slices.stop - 1
    sides = (low[:2] == 0) | (high[:2] == np.array(self._hu.shape[:2]) - 1)
    return bool(ends or sides.any())


def _coarser(image: np.ndarray, spacing: Sequence[float], grid: Sequence[float]) -> np.ndarray:
  """`resample.resample` of order 1 with little memory: a few planes at a time, then their axis."""
  within = (*grid[:2], spacing[2])
  parts = [
    resample.resample(image[:, :, start : start + _PLANES], spacing, within, order=1)
    for start in range(0, image.shape[2], _PLANES)
  ]
  return resample.resample(np.concatenate(parts, 2), within, grid, order=1)


def _sections(patient: np.ndarray, grid: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
  """Middle of each axial section along axes 0 and 1, and its standard deviation: (W, 2) mm."""
  count = np.maximum(patient.sum((0, 1)), 1)
  middle, spread = (np.empty((patient.shape[2], 2)) for _ in range(2))
  for axis in (0, 1):
    mm = np.arange(patient.shape[axis])[:, None] * grid[axis]
    weight = patient.sum(1 - axis)  # (n, W)
    middle[:, axis] = (weight * mm).sum(0) / count
    square = (weight * (mm - middle[:, axis]) ** 2).sum(0) / count
    spread[:, axis] = np.maximum(np.sqrt(square), grid[axis])
  return middle, spread
