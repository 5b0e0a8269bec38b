"""What tells one scan from another, whatever was done to its file.

A scan's fingerprint is its content on a coarse grid, relative to its own soft tissue: it survives
cropped slices, mirrored axes, other spacings, another HU offset and lossy compression. Scans are
compared in two stages: by the areas of tissue and bone slice after slice, then voxel by voxel
inside the body at the best alignment. NOTE: the first stage loses scans that were cut within their
slices to less than about four fifths of the body's width.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import fft, ndimage

from input_pipeline.ct import resample
from input_pipeline.dedupe import sketches
from input_pipeline.errors import UserError

_GRID_MM = 6.0
_TISSUE = (-150.0, 250.0)  # HU relative to the median of the body
_PROFILE_DISTANCE = 0.25  # scans whose slice areas differ more are different
_WEIGHTS = np.array((1.0, 0.25, 1.0))  # of body, fat and bone
_SAME = 0.85  # correlation inside the body from which on two scans are the same
_PROMISING = 0.6  # at half the resolution, where a match is refined
# At a quarter of it; copies of 29 patients, six kinds each, have at least 0.697 there, and 63 % of
# the pairs of different patients less than this.
_POSSIBLE = 0.65
_OVERLAP = 0.5  # of the smaller body that must lie in the other one


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
  """What is kept of a scan.

  Attributes:
    values: (D, H, W) float32 at 6 mm, HU relative to the median of the body, zero outside it.
    body: (D, H, W) bool.
    profile: (W, 3) float32; areas of body, fat and bone in each slice, voxels of the grid.
  """

  values: np.ndarray
  body: np.ndarray
  profile: np.ndarray


def fingerprint(image: np.ndarray, spacing: Sequence[float]) -> Fingerprint:
  """The fingerprint of a scan.

  Args:
    image: (D, H, W), HU or HU with an offset, canonical axis order.
    spacing: (3,) mm.

  Raises:
    UserError: if the scan is of one value.
  """
  image = np.asarray(image, np.float32)
  if image.min() == image.max():
    raise UserError(f'every voxel is {image.min():g}: no scan')
  coarse = resample.resample(image, spacing, (_GRID_MM,) * 3, order=1)
  body = coarse > _otsu(coarse)
  # The largest piece without the couch's thin parts.
  pieces, number = ndimage.label(ndimage.binary_opening(body))
  if number:
    body &= ndimage.binary_dilation(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())
  relative = coarse - np.median(coarse[body])
  values = np.where(body, np.clip(relative, *_TISSUE), 0).astype(np.float32)
  inside = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(body))
  body, values, relative = body[inside], values[inside], relative[inside]
  areas = [body, body & (relative < -60), body & (relative > 120)]
  profile = np.stack([area.sum((0, 1)) for area in areas], -1).astype(np.float32)
  return Fingerprint(values, body, profile)


def _otsu(image: np.ndarray) -> float:
  """The threshold between air and tissue: largest variance between the two classes."""
  low, high = np.percentile(image, (0.5, 99))
  counts, edges = np.histogram(np.clip(image, low, high), 128)
  centres = (edges[1:] + edges[:-1]) / 2
  weight, total = counts.cumsum(), (counts * centres).cumsum()
  with np.errstate(invalid='ignore', divide='ignore'):
    between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * (weight[-1] - weight))
  return float(edges[1:][np.nan_to_num(between[:-1], posinf=0).argmax()])


def profile_distances(profile: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
  """How much slice areas differ at the best alignment, either way up.

  The distance is the root of the mean squared difference, relative to the body's areas; at least
  half of the shorter scan must overlap.

  Args:
    profile: (n, 3) float32.
    others: N arrays (m_i, 3) float32.

  Returns:
    (N,) float64, 0 for equal scans.
  """
  n, m = len(profile), np.array([len(other) for other in others])
  size = fft.next_fast_len(n + int(m.max()), real=True)
  ours = _spectrum([profile], size)
  shifts = np.arange(-m.max() + 1, n)
  # Overlap of each shift: ours from `first` to `last`, theirs that minus the shift. (N, S)
  first = np.broadcast_to(np.maximum(shifts, 0), (len(m), len(shifts)))
  last = np.clip(shifts + m[:, None], 0, n)
  valid = last - first >= np.maximum(2, -(-np.minimum(n, m) // 2))[:, None]
  last = np.maximum(last, first)
  best = np.full(len(m), np.inf)
  for turned in (others, [other[::-1] for other in others]):
    product = fft.irfft(ours * np.conj(_spectrum(turned, size)), size, axis=1)[:, shifts]
    before = _cumulated([profile], n)
    theirs = _cumulated(turned, int(m.max()))
    rows = np.arange(len(m))[:, None]
    low, high = (np.clip(at - shifts, 0, m[:, None]) for at in (first, last))
    squares = before[0, last] - before[0, first] + theirs[rows, high] - theirs[rows, low]
    difference = np.maximum(squares - 2 * product, 0) @ _WEIGHTS
    with np.errstate(invalid='ignore', divide='ignore'):
      distance = np.sqrt(difference / (squares[..., 0] / 2))
    best = np.minimum(best, np.where(valid, distance, np.inf).min(1))
  return best


def _spectrum(profiles: Sequence[np.ndarray], size: int) -> np.ndarray:
  return fft.rfft(_padded(profiles, size), axis=1)


def _cumulated(profiles: Sequence[np.ndarray], size: int) -> np.ndarray:
  """(N, size + 1, 3): sums of squares of the slices before each."""
  return np.pad(_padded(profiles, size) ** 2, ((0, 0), (1, 0), (0, 0))).cumsum(1)


def _padded(profiles: Sequence[np.ndarray], size: int) -> np.ndarray:
  table = np.zeros((len(profiles), size, 3))
  for row, profile in zip(table, profiles, strict=True):
    row[: len(profile)] = profile
  return table


def correlation(a: Fingerprint, b: Fingerprint) -> float:
  """Pearson's correlation inside both bodies, at the best alignment and mirroring.

  Found on a grid of half the resolution first; only what is promising there is refined. Before
  that, a quarter of it tells most others apart in a twentieth of the time. A body of one voxel
  along an axis has no such grid, and is like none: -1.
  """
  if min(*a.body.shape, *b.body.shape) < 2:
    return -1.0
  small_a, small_b = _halved(a), _halved(b)
  rough = _roughly(_halved(small_a), _halved(small_b))
  if rough < _POSSIBLE:
    return rough
  sizes = np.array(small_a.body.shape) + small_b.body.shape - 1
  shape = [fft.next_fast_len(int(n), real=True) for n in sizes]
  ours = _moments(small_a, shape)
  least = _OVERLAP * min(small_a.body.sum(), small_b.body.sum())
  best = -1.0
  for flips in itertools.product((1, -1), repeat=3):
    turned = _flipped(small_b, flips)
    everywhere = _pearson_everywhere(ours, _moments(turned, shape), shape, least)
    at = np.array(np.unravel_index(everywhere.argmax(), shape))
    shift = np.where(at >= small_a.body.shape, at - shape, at)
    # Bodies are nearly symmetric: which mirroring is right shows at the full resolution only.
    coarse = float(everywhere.max())
    best = max(best, coarse if coarse < _PROMISING else _refined(a, b, flips, shift))
  return best


def _roughly(a: Fingerprint, b: Fingerprint) -> float:
  """Correlation at the best alignment and mirroring of a coarse grid; 1 where nobody can tell."""
  least = _OVERLAP * min(a.body.sum(), b.body.sum())
  if not least:
    return 1.0
  sizes = np.array(a.body.shape) + b.body.shape - 1
  shape = [fft.next_fast_len(int(n), real=True) for n in sizes]
  ours, best = _moments(a, shape), -1.0
  for flips in itertools.product((1, -1), repeat=3):
    theirs = _moments(_flipped(b, flips), shape)
    best = max(best, float(_pearson_everywhere(ours, theirs, shape, least).max()))
  return best


def _refined(a: Fingerprint, b: Fingerprint, flips: Sequence[int], shift: np.ndarray) -> float:
  """Correlation at the full resolution, near a shift of half the resolution."""
  turned, start = _flipped(b, flips), 2 * shift
  # Halving drops an odd last plane, which a mirrored axis has first.
  start = start - (np.array(b.body.shape) % 2) * (np.array(flips) < 0)
  steps = itertools.product((-2, -1, 0, 1, 2), repeat=3)
  _, at = max(
    ((_pearson(a, turned, start + step), tuple(start + step)) for step in steps),
    key=lambda item: item[0],
  )
  # Two resamplings of one scan may lie half a voxel apart.
  halves = itertools.product((-0.5, 0.0, 0.5), repeat=3)
  return max(_pearson(a, _moved(turned, half), np.array(at)) for half in halves)


def _moments(scan: Fingerprint, shape: Sequence[int]) -> list[np.ndarray]:
  """Spectra of the body, the values and their squares."""
  return [fft.rfftn(x, shape) for x in (_float(scan.body), scan.values, scan.values**2)]


def _pearson_everywhere(
  ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], shape: Sequence[int], least: float
) -> np.ndarray:
  """Correlation where both are body, at every shift; -1 where that is less than `least` voxels.

  Masked normalised cross-correlation by FFT (Padfield, IEEE TIP 21(5), 2012).
  """
  (body_a, a, aa), (body_b, b, bb) = ours, theirs
  product = lambda x, y: fft.irfftn(x * np.conj(y), shape)
  n = product(body_a, body_b)
  valid = n >= max(least, 1)
  n = np.maximum(n, 1)
  sum_a, sum_b = product(a, body_b), product(body_a, b)
  square_a = product(aa, body_b) - sum_a**2 / n
  square_b = product(body_a, bb) - sum_b**2 / n
  both = product(a, b) - sum_a * sum_b / n
  # Round-off of the FFTs is no content.
  spread = np.sqrt(np.maximum(square_a, n) * np.maximum(square_b, n))
  return np.where(valid, both / spread, -1)


def _moved(scan: Fingerprint, shift: Sequence[float]) -> Fingerprint:
  if not any(shift):
    return scan
  values = ndimage.shift(scan.values, shift, order=1, mode='nearest')
  return dataclasses.replace(scan, values=values)


def _float(mask: np.ndarray) -> np.ndarray:
  return mask.astype(np.float32)


def _halved(scan: Fingerprint) -> Fingerprint:
  """Means of cubes of two voxels."""
  even = tuple(slice(n // 2 * 2) for n in scan.body.shape)
  blocks = [x for n in scan.body.shape for x in (n // 2, 2)]
  values, body = (x[even].reshape(blocks).mean((1, 3, 5)) for x in (scan.values, _float(scan.body)))
  return Fingerprint(np.where(body > 0.5, values, 0), body > 0.5, scan.profile)


def _flipped(scan: Fingerprint, flips: Sequence[int]) -> Fingerprint:
  turn = tuple(slice(None, None, step) for step in flips)
  return Fingerprint(scan.values[turn], scan.body[turn], scan.profile)


def _pearson(a: Fingerprint, b: Fingerprint, shift: np.ndarray) -> float:
  """Correlation where both are body, b moved by a shift; -1 where that is next to nothing."""
  low = np.maximum(shift, 0)
  high = np.minimum(shift + b.body.shape, a.body.shape)
  if (high <= low).any():
    return -1.0
  ours = tuple(map(slice, low, high))
  theirs = tuple(map(slice, low - shift, high - shift))
  both = a.body[ours] & b.body[theirs]
  if both.sum() < 50:
    return -1.0
  x, y = a.values[ours][both], b.values[theirs][both]
  x, y = x - x.mean(), y - y.mean()
  return float(x @ y / max(np.sqrt((x @ x) * (y @ y)), 1e-6))


def find_groups(prints: Mapping[tuple[str, str], Fingerprint]) -> list[list[tuple[str, str]]]:
  """Groups of at least two keys (source, case) whose scans are the same, in order."""
  group = {key: key for key in prints}

  def root(key: tuple[str, str]) -> tuple[str, str]:
    while group[key] != key:
      key = group[key]
    return key

  keys = sorted(prints)
  small = getattr(prints, 'small', None) or {
    key: (prints[key].profile, sketches.sketch(prints[key].values, prints[key].body))
    for key in keys
  }
  profiles = {key: profile for key, (profile, _) in small.items()}
  search = sketches.Sketches([small[key][1] for key in keys])
  for i, a in enumerate(keys):
    rest = [keys[j] for j in search.near(i)]
    if not rest:
      continue
    distances = profile_distances(profiles[a], [profiles[b] for b in rest])
    first = None
    for j in np.flatnonzero(distances < _PROFILE_DISTANCE):
      b = rest[j]
      if root(a) == root(b):
        continue
      first = first or prints[a]
      if correlation(first, prints[b]) >= _SAME:
        group[max(root(a), root(b))] = min(root(a), root(b))
  members: dict[tuple[str, str], list] = {}
  for key in sorted(prints):
    members.setdefault(root(key), []).append(key)
  return [keys for keys in members.values() if len(keys) > 1]
