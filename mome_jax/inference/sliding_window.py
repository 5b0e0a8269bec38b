"""Sliding window over a whole scan with bounded memory.

Windows are visited plane by plane along the first axis; what lies behind the next plane of windows
is complete, leaves as a slab and is forgotten. So no more than one window depth of K maps is ever
held, however long the scan is; on the scan's own grid there is one class at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from input_pipeline.ct import resample
from mome_jax.inference.stage_clock import Clock

BACKGROUND = -30.0  # logit where no window looked, that is in air


def window_starts(size: int, window: int, overlap: float) -> list[int]:
  """First voxels of the windows along one axis; the last window ends at the border.

  Args:
    size: voxels along the axis, at least `window`.
    window: voxels of a window.
    overlap: share of a window that the next one covers again, in [0, 1).
  """
  interval = max(int(window * (1 - overlap)), 1)
  count = 1 + max(math.ceil((size - window) / interval), 0)
  return [min(i * interval, size - window) for i in range(count)]


def gaussian_weights(window: Sequence[int], sigma: float = 0.125) -> np.ndarray:
  """How much each voxel of a window counts: (D, H, W) float32, 1 in the middle.

  A Gaussian of `sigma` window lengths; no weight is below max(the smallest, 1e-3), as in MONAI.
  """
  weights = np.ones((), np.float32)
  for size in window:
    x = np.arange(size, dtype=np.float32) - (size - 1) / 2
    weights = weights[..., None] * np.exp(-(x**2) / (2 * (sigma * size) ** 2))
  return np.maximum(weights, max(weights[weights > 0].min(), 1e-3)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """Where the windows of a scan lie.

  Attributes:
    size: voxels of a window, three numbers.
    shape: (D, H, W) of the scan.
    padded: of the scan with the air around it that makes it as large as a window.
    before: three numbers of voxels of air in front of the scan.
    planes: for each first voxel along the first axis, the corners of its windows in the padded
      scan, those of air left out.
  """

  size: tuple[int, int, int]
  shape: tuple[int, int, int]
  padded: tuple[int, int, int]
  before: tuple[int, int, int]
  planes: Mapping[int, Sequence[tuple[int, int, int]]]

  def region(self, corner: Sequence[int]) -> tuple[slice, slice, slice]:
    """The voxels of a window of the padded scan."""
    return tuple(slice(c, c + w) for c, w in zip(corner, self.size, strict=True))

  @property
  def scan(self) -> tuple[slice, slice, slice]:
    """Where the scan lies in the padded one."""
    return tuple(slice(b, b + n) for b, n in zip(self.before, self.shape, strict=True))


class Watch(Protocol):
  """Takes the place of `predict` and sees which windows it is asked about."""

  def begin(self, windows: Windows) -> None:
    """Called once, before the first batch."""

  def predict(self, batch: np.ndarray, corners: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """As `predict` of `sliding_window`; the corners of its rows, fewer where rows are padding."""


def _tile(image, window, overlap, skip_air) -> tuple[np.ndarray, Windows]:
  """The image, padded where it is smaller than a window, and its windows."""
  shape = image.shape[:3]
  missing = [max(w - n, 0) for w, n in zip(window, shape, strict=True)]
  padding = [(m // 2, m - m // 2) for m in missing]
  image = np.pad(image, [*padding, (0, 0)]) if any(missing) else image
  starts = [window_starts(n, w, overlap) for n, w in zip(image.shape[:3], window, strict=True)]
  before = tuple(m // 2 for m in missing)
  windows = Windows(tuple(window), shape, image.shape[:3], before, {})
  for first in starts[0]:
    corners = [(first, j, k) for j in starts[1] for k in starts[2]]
    windows.planes[first] = [
      corner for corner in corners if not skip_air or image[windows.region(corner)].any()
    ]
  return image, windows


def sliding_window(
  predict: Callable[[np.ndarray], np.ndarray],
  image: np.ndarray,
  *,
  window: Sequence[int],
  overlap: float = 0.5,
  batch_size: int = 1,
  skip_air: bool = True,
  classes: int | None = None,
  clock: Clock | None = None,
  watch: Watch | None = None,
) -> Iterator[np.ndarray]:
  """Blended logits of a scan, in slabs along the first axis.

  Args:
    predict: (batch_size, *window, C) float32 -> (batch_size, *window, K) float32, always called
      with this one shape, so that nothing is compiled twice.
    image: (D, H, W, C) float32 in [0, 1]; 0 is air.
    window: voxels of a window, three numbers.
    overlap: between neighbouring windows, in [0, 1).
    batch_size: windows a call; the last batch of a plane is padded with air.
    skip_air: leave out windows without a voxel above 0.
    classes: K, where `predict` returns more of them; the first ones are kept.
    clock: counts the time spent in `predict` and waiting for it as 'network'.
    watch: predicts in place of `predict`.

  Yields:
    Slabs (d_i, H, W, K) float32, in order, sum of d_i = D; with one channel, all `BACKGROUND`,
    before the first window that is not air. Each is overwritten when the next one is made.
  """
  image, windows = _tile(image, window, overlap, skip_air)
  weights = gaussian_weights(window)
  ask = lambda batch, _: predict(batch)
  if watch is not None:
    watch.begin(windows)
    ask = watch.predict

  total = mass = None  # (K, window[0], H, W) and (window[0], H, W)
  ends = [*list(windows.planes)[1:], image.shape[0]]
  for (first, corners), end in zip(windows.planes.items(), ends, strict=True):
    views = [image[windows.region(corner)] for corner in corners]
    for n, logits in _predict_batches(ask, views, corners, batch_size, clock or Clock()):
      if total is None:
        count = classes or logits.shape[-1]
        total = np.zeros((count, window[0], *image.shape[1:3]), np.float32)
        mass = np.zeros(total.shape[1:], np.float32)
      _, j, k = corners[n]
      region = (slice(None), slice(j, j + window[1]), slice(k, k + window[2]))
      for one, summed in enumerate(total):  # class by class: no second array of K maps
        summed[region] += logits[..., one] * weights
      mass[region] += weights
    done = end - first
    yield from _finish(total, mass, first, done, windows.scan, windows.shape)
    if end < image.shape[0] and total is not None:
      for buffer in (*total, mass):
        buffer[:-done] = buffer[done:].copy()
        buffer[-done:] = 0


def _predict_batches(predict, views, corners, batch_size, clock):
  """Yields (index of the view, its logits) for each view.

  The next batch is on its way to the device before the last one is waited for, so that device and
  host work at the same time.
  """

  def logits_of(batch, result):
    with clock('network'):
      return zip(batch, np.asarray(result), strict=False)

  pending = None
  for at in range(0, len(views), batch_size):
    batch = range(at, min(at + batch_size, len(views)))
    stack = np.zeros((batch_size, *views[0].shape), np.float32)
    for row, n in enumerate(batch):
      stack[row] = views[n]
    with clock('network'):
      result = predict(stack, corners[batch.start : batch.stop])
    if pending is not None:
      yield from logits_of(*pending)
    pending = (batch, result)
  if pending is not None:
    yield from logits_of(*pending)


def _finish(total, mass, first, done, crop, shape):
  """Yields the completed planes [first, first + done) that lie inside the unpadded scan."""
  low, high = max(first, crop[0].start), min(first + done, crop[0].stop)
  if low >= high:
    return
  if total is None:  # only air so far: K is known once a window has been predicted
    yield np.full((high - low, *shape[1:], 1), BACKGROUND, np.float32)
    return
  where = (slice(low - first, high - first), *crop[1:])
  seen = mass[where]
  unseen = seen == 0
  seen[unseen] = 1
  for summed in total:
    summed[where] /= seen
    summed[where][unseen] = BACKGROUND
  yield np.moveaxis(total[:, *where], 0, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Slab:
  """Logits of K classes in some planes of a scan, interpolated one class at a time.

  Attributes:
    planes: of the scan, along its first axis.
    shape: (d, H, W) of these planes.
    parts: coarse logits (d_i, H_c, W_c, K) or, of air, (d_i, H_c, W_c, 1), one after the other.
    axes: of each axis, what `resample.axis_weights` gives: where the planes lie in the parts.
  """

  planes: slice
  shape: tuple[int, int, int]
  parts: Sequence[np.ndarray]
  axes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]

  def logits(self, k: int) -> np.ndarray:
    """(d, H, W) float32 of class k."""
    return self._interpolate(self._coarse(k), self.axes)

  def positive(self, k: int) -> tuple[tuple[slice, ...], np.ndarray] | None:
    """A box that holds every voxel of class k with a logit above 0, and the logits inside it.

    Interpolation never exceeds what it lies between, so that most classes and most of the scan
    need none.

    Returns:
      Three slices into `shape` and float32 logits of theirs; None where there is no such voxel.
    """
    coarse = self._coarse(k)
    over = coarse > 0
    box, axes = [], []
    for axis, (lower, upper, weight) in enumerate(self.axes):
      used = np.flatnonzero(over.any(tuple(a for a in range(3) if a != axis)))
      if not used.size:
        return None
      span = slice(
        int(np.searchsorted(upper, used[0])), int(np.searchsorted(lower, used[-1], 'right'))
      )
      box.append(span)
      axes.append((lower[span], upper[span], weight[span]))
    if any(span.start >= span.stop for span in box):  # between the planes of a coarser scan
      return None
    return tuple(box), self._interpolate(coarse, axes)

  def _coarse(self, k: int) -> np.ndarray:
    return np.concatenate([part[..., min(k, part.shape[-1] - 1)] for part in self.parts])

  def _interpolate(self, maps: np.ndarray, axes) -> np.ndarray:
    # The axis that grows most last: the others then have less to do.
    for axis in sorted(range(3), key=lambda a: len(axes[a][0]) / maps.shape[a]):
      maps = resample.interpolate(maps, axis, *axes[axis])
    return maps


def resample_slabs(
  slabs: Iterable[np.ndarray],
  shape: Sequence[int],
  spacing: Sequence[float],
  target_shape: Sequence[int],
  target_spacing: Sequence[float],
  *,
  max_bytes: int = 64 << 20,
) -> Iterator[Slab]:
  """Trilinear interpolation of a stream of slabs onto another grid with the same centre.

  Args:
    slabs: (d_i, H, W, K) float32 along the first axis, in order, that make up `shape`; each may be
      overwritten when the next one is asked for.
    shape: (D, H, W) of the stream.
    spacing: mm, three numbers.
    target_shape: (D', H', W') of the result.
    target_spacing: mm, three numbers.
    max_bytes: of one map of a yielded slab.

  Yields:
    Slabs in order whose planes make up D'; each can be used until the next one is asked for.
  """
  axes = [
    resample.axis_weights(n, s, m, t)
    for n, s, m, t in zip(shape, spacing, target_shape, target_spacing, strict=True)
  ]
  lower, upper, weight = axes[0]
  planes = max(1, max_bytes // (4 * target_shape[1] * target_shape[2]))
  parts, first, emitted = [], 0, 0  # `first` is the plane that the parts begin with
  for slab in slabs:
    parts.append(slab)
    end = first + sum(map(len, parts))
    ready = int(np.searchsorted(upper, end))
    for start in range(emitted, ready, planes):
      rows = slice(start, min(start + planes, ready))
      along = lower[rows] - first, upper[rows] - first, weight[rows]
      size = (rows.stop - rows.start, *target_shape[1:])
      yield Slab(rows, size, parts, [along, *axes[1:]])
    emitted = max(emitted, ready)
    # The next plane may lie between the last one of this slab and the first one of the next.
    needed = emitted < len(lower) and lower[emitted] < end
    parts, first = ([slab[-1:].copy()], end - 1) if needed else ([], end)
