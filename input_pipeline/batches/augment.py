"""Augmentations of CT patches: stateless numpy, all randomness from the generator passed in.

Mirror images, which also swap the labels of paired organs, are made by `mirror`.
"""

import math
import types
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.batches import artefacts
from input_pipeline.ct import resample
from input_pipeline.errors import UserError, suggest


class AugmentError(UserError):
  """A field that does not exist or a value that cannot be; the message names it."""


# `p_*` is the probability of each; HU changes stay small because CT numbers are calibrated. Of what
# is off by default no number is drawn, so that runs without it keep their batches.
DEFAULTS: Mapping = types.MappingProxyType(
  {
    'enabled': True,
    'p_mirror': 0.0,  # left-right mirror images; off, as no patient has the liver on the left
    'p_rotate': 0.3,
    'max_degrees': 15.0,  # about each axis
    'p_zoom': 0.3,
    'zoom': (0.85, 1.25),  # above 1 enlarges the anatomy
    'p_stretch': 0.0,
    'stretch': (0.85, 1.25),  # as zoom, but each axis by its own factor
    'p_shear': 0.0,
    'shear': (0.0, 0.15),  # as a patient lies bent: mm along one axis per mm along another
    'p_elastic': 0.0,
    'elastic': (2.0, 8.0),  # mm, largest shift along an axis
    'elastic_grid': 40.0,  # mm between the points that are shifted
    'p_warp': 0.0,  # elastic again, on the scale of organs
    'warp': (8.0, 24.0),
    'warp_grid': 120.0,
    # Whether the voxel that a patch is drawn for stays where it is when the patch is turned and
    # deformed, not the patch's centre: strong deformations would move small structures out of it.
    'hold_voxel': False,
    'p_field': 0.0,  # the scan ends within the patch
    'field': (0.1, 0.5),  # part of the patch that lies beyond its end
    'p_contrast': 0.0,  # another phase: see contrast.py
    'contrast_phase': (0.0, 4.0),  # up to 1 none, 2 arterial, 3 portal venous, 4 delayed
    'contrast_dose': (0.7, 1.3),  # enhancement is multiplied by it
    'contrast_spread': 8.0,  # HU, standard deviation of each organ between patients
    'p_content': 0.0,  # stomach and bowel with water or oral contrast medium
    'p_streaks': 0.0,
    'streaks': (40.0, 250.0),  # HU of the strongest ray at 20 mm from what casts it
    'p_intensity': 0.3,
    'intensity_scale': 0.1,  # HU are multiplied by 1 +- this
    'intensity_shift': 20.0,  # HU added, +- this
    'p_noise': 0.15,
    'noise': 30.0,  # HU, largest standard deviation
    'p_blur': 0.1,
    'blur': (0.5, 1.0),  # voxels, standard deviation
    'p_low_resolution': 0.1,
    'low_resolution': (1.0, 2.0),  # voxels of the patch per voxel of the simulated scan
    'p_thick_slices': 0.0,
    'thick_slices': (4.0, 10.0),  # mm
    'p_cut_out': 0.0,
    'cut_out': (1, 4),  # neighbouring axial slices that are lost
    'p_gamma': 0.2,
    'gamma': (0.7, 1.5),  # exponent, after the HU windows
    'p_gamma_inverted': 0.0,  # the same of the negative image: it spreads what is bright
  }
)


_DIVISORS = ('zoom', 'stretch', 'low_resolution')  # of sizes: no voxel has the size 0
# Shifts of cubic B-splines up to the distance of their points over this leave no fold (Choi and
# Lee, Graphical Models 2000).
_FOLDS = 2.48


def complete(config: Mapping | None) -> dict:
  """A configuration with the defaults filled in.

  Args:
    config: some of the fields of DEFAULTS; {'enabled': False} or None turns everything off.

  Raises:
    AugmentError: if a field is unknown or of another type, a probability is outside 0..1, a range
      is none, a number is below 0 or not finite, or shifts are so large that the scan would fold.
  """
  config = {'enabled': False} if config is None else dict(config)
  unknown = sorted(set(config) - set(DEFAULTS))
  if unknown:
    raise AugmentError(
      f'data.augment has no field {unknown[0]!r}; {suggest(unknown[0], sorted(DEFAULTS))}'
    )
  config = {**DEFAULTS, **config}
  for name, value in config.items():
    if name.startswith('p_'):
      if not (_is_number(value) and 0 <= value <= 1):
        raise AugmentError(f'data.augment.{name} is {value!r}; expected a probability, 0 to 1')
      config[name] = value if config['enabled'] else 0.0
    elif isinstance(DEFAULTS[name], tuple):
      pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
      if not (pair and 0 <= value[0] <= value[1]):
        raise AugmentError(f'data.augment.{name} is {value!r}; expected (lowest, highest)')
      if name in _DIVISORS and not value[0]:
        raise AugmentError(f'data.augment.{name} is {value!r}; expected numbers above 0')
    elif isinstance(DEFAULTS[name], bool):
      if not isinstance(value, bool):
        raise AugmentError(f'data.augment.{name} is {value!r}; expected True or False')
    elif not (_is_number(value) and value >= 0):
      raise AugmentError(f'data.augment.{name} is {value!r}; expected a number from 0 on')
  _check_folds(config)
  return config


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def complete_for(config: Mapping | None, fields: Mapping) -> dict:
  """As `complete`, for a dataset that has some fields otherwise; it is off where `config` is."""
  return complete(None if config is None else {**config, **fields})


def _check_folds(config: Mapping) -> None:
  """AugmentError where shifts could fold the scan; of a sum of splines the bounds add up."""
  left = 1 / _FOLDS
  for name in ('elastic', 'warp'):
    grid = config[f'{name}_grid']
    if config[name][1] > grid * left:
      raise AugmentError(
        f'data.augment.{name} shifts by up to {config[name][1]} mm; expected at most '
        f'{grid * left:g} with a {name}_grid of {grid:g}, or the scan would fold'
      )
    if config['p_elastic'] and config['p_warp']:
      left -= config[name][1] / grid


def draw_matrix(
  rng: np.random.Generator, config: Mapping, spacing: Sequence[float]
) -> np.ndarray | None:
  """A random rotation, zoom, stretch and shear.

  Args:
    rng: source of randomness.
    config: from `complete`.
    spacing: (3,) mm; the rotation happens in mm, so that anisotropic voxels do not shear anatomy.

  Returns:
    (3, 3) float64, offset from the patch centre (voxels) -> offset in the scan (voxels), or None
    where none was drawn.
  """
  from scipy.spatial.transform import Rotation  # slow to import

  rotate, zoom = rng.random(2) < (config['p_rotate'], config['p_zoom'])
  degrees = rng.uniform(-config['max_degrees'], config['max_degrees'], 3)
  factor = rng.uniform(*config['zoom'])
  stretch, shear = draws(rng, config, 'p_stretch'), draws(rng, config, 'p_shear')
  if not (rotate or zoom or stretch or shear):
    return None
  matrix = Rotation.from_euler('xyz', degrees, degrees=True).as_matrix() if rotate else np.eye(3)
  if zoom:
    matrix = matrix / factor
  if stretch:
    low, high = config['stretch']
    matrix = matrix / rng.uniform(low, high, 3)
  if shear:
    along, across = rng.choice(3, 2, replace=False)
    tilt = np.eye(3)
    tilt[along, across] = rng.choice((-1, 1)) * rng.uniform(*config['shear'])
    matrix = matrix @ tilt
  mm = np.asarray(spacing, float)
  return matrix * mm / mm[:, None]


def draws(rng: np.random.Generator, config: Mapping, name: str) -> bool:
  """Whether something happens; without a number where it never does."""
  return config[name] > 0 and rng.random() < config[name]


def draw_shifts(
  rng: np.random.Generator,
  config: Mapping,
  shape: Sequence[int],
  spacing: Sequence[float],
  *,
  level: bool,
) -> np.ndarray | None:
  """A random smooth deformation: cubic B-splines between shifted points (Rueckert et al., 1999).

  Args:
    rng: source of randomness.
    config: from `complete`.
    shape: (3,) voxels of the patch.
    spacing: (3,) mm.
    level: whether every voxel keeps its height.

  Returns:
    (3, D, H, W) float32, how many voxels of the scan each voxel of the patch is shifted along each
    axis, or None where none was drawn.
  """
  shifts = None
  for name in ('elastic', 'warp'):
    if draws(rng, config, f'p_{name}'):
      drawn = _smooth(rng, shape, spacing, config[name], config[f'{name}_grid'])
      shifts = drawn if shifts is None else shifts + drawn
  if level and shifts is not None:
    shifts[2] = 0
  return shifts


def _smooth(
  rng: np.random.Generator,
  shape: Sequence[int],
  spacing: Sequence[float],
  bounds: tuple[float, float],
  grid: float,
) -> np.ndarray:
  """As `draw_shifts`, from points `grid` mm apart; the largest shift is within bounds, mm."""
  mm = np.asarray(spacing, float)
  bases = [_spline(n, edge / grid) for n, edge in zip(shape, mm, strict=True)]
  points = rng.uniform(-1, 1, (3, *(basis.shape[1] for basis in bases))).astype(np.float32)
  low, high = bounds
  points *= (rng.uniform(low, high) / mm[:, None, None, None]).astype(np.float32)
  for basis in bases:  # one axis after the other; each goes to the end
    points = np.tensordot(points, basis.astype(np.float32), ([1], [1]))
  return points


def _spline(size: int, step: float) -> np.ndarray:
  """(size, points) float64: what each point of a uniform cubic B-spline gives to each voxel."""
  place = np.arange(size) * step
  first = place.astype(int)
  u = place - first
  weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
  basis = np.zeros((size, first[-1] + 4))
  for i, weight in enumerate(weights):
    basis[np.arange(size), first + i] = weight / 6
  return basis


def draw_field(
  rng: np.random.Generator,
  config: Mapping,
  start: np.ndarray,
  patch: Sequence[int],
  voxel: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
  """Where a scan ends that was made of a part of the patient: below, above, or at its sides.

  Args:
    rng: source of randomness.
    config: from `complete`.
    start: (3,) first voxel of the patch, in the scan.
    patch: (3,) its voxels.
    voxel: (3,) of the scan, which stays in it.

  Returns:
    (3,) first voxel and (3,) one past the last, or None where none was drawn.
  """
  if not draws(rng, config, 'p_field'):
    return None
  reach = np.iinfo(np.int32).max
  low, high = np.full(3, -reach), np.full(3, reach)
  # Half of them end at a slice, as most scans do.
  axis = int(rng.choice(3, p=(0.25, 0.25, 0.5)))
  for at_end in np.flatnonzero(rng.permutation((True, rng.random() < 0.25))):
    lost = round(rng.uniform(*config['field']) * patch[axis])
    if at_end:
      high[axis] = max(start[axis] + patch[axis] - lost, voxel[axis] + 1)
    else:
      low[axis] = min(start[axis] + lost, voxel[axis])
  return low, high


def change_scan(
  rng: np.random.Generator, image: np.ndarray, config: Mapping, spacing: Sequence[float]
) -> np.ndarray:
  """Streaks, and slices as thick as they were in older scans.

  Args:
    rng: source of randomness.
    image: (D, H, W) float32 HU; left as it is.
    config: from `complete`.
    spacing: (3,) mm.

  Returns:
    (D, H, W) float32 HU.
  """
  if draws(rng, config, 'p_streaks'):
    image = artefacts.streaks(rng, image, rng.uniform(*config['streaks']), spacing)
  if draws(rng, config, 'p_thick_slices'):
    thickness, offset = rng.uniform(*config['thick_slices']) / spacing[2], rng.random()
    if thickness > 1:
      image = artefacts.thick_slices(image, thickness, offset)
  return image


def change_hu(rng: np.random.Generator, image: np.ndarray, config: Mapping) -> np.ndarray:
  """Blur, low resolution, scale and shift, noise: in the order in which a scanner makes them.

  And lost slices, which have the mean of the patch; their labels stay.

  Args:
    rng: source of randomness.
    image: (D, H, W) float32 HU; left as it is.
    config: from `complete`.

  Returns:
    (D, H, W) float32 HU.
  """
  from scipy import ndimage  # slow to import

  blur, coarse, intensity, noise = rng.random(4) < (
    config['p_blur'],
    config['p_low_resolution'],
    config['p_intensity'],
    config['p_noise'],
  )
  if blur:
    image = ndimage.gaussian_filter(image, rng.uniform(*config['blur']), truncate=3.0)
  if coarse:
    factor = (rng.uniform(*config['low_resolution']),) * 3
    small = resample.resample(image, (1, 1, 1), factor, order=1)
    image = resample.resample(small, factor, (1, 1, 1), order=1, target_shape=image.shape)
  if intensity:
    scale = 1 + rng.uniform(-1, 1) * config['intensity_scale']
    image = image * np.float32(scale) + np.float32(rng.uniform(-1, 1) * config['intensity_shift'])
  if noise:
    deviation = np.float32(rng.uniform(0, config['noise']))
    image = image + deviation * rng.standard_normal(image.shape, np.float32)
  if draws(rng, config, 'p_cut_out'):
    low, high = config['cut_out']
    count = min(int(rng.integers(low, high, endpoint=True)), image.shape[2])
    first = rng.integers(image.shape[2] - count, endpoint=True)
    image = image.copy()
    image[:, :, first : first + count] = image.mean()
  return image


def change_contrast(rng: np.random.Generator, image: np.ndarray, config: Mapping) -> np.ndarray:
  """One random exponent for all channels; and one for their negative.

  Args:
    rng: source of randomness.
    image: (D, H, W, C) float32 in [0, 1].
    config: from `complete`.

  Returns:
    (D, H, W, C) float32 in [0, 1].
  """
  if rng.random() < config['p_gamma']:
    image = image ** np.float32(rng.uniform(*config['gamma']))
  if draws(rng, config, 'p_gamma_inverted'):
    image = 1 - (1 - image) ** np.float32(rng.uniform(*config['gamma']))
  return image
