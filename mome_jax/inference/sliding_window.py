"""Sliding window over a whole scan with bounded memory.

Windows are visited plane by plane along the first axis; what lies behind the next plane of windows
is complete, leaves as a slab and is forgotten. So no more than one window depth of K maps is ever
held, however long the scan is; `slabs` brings them to the scan's own grid, one class at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from mome_jax.errors import UserError
from mome_jax.inference.stage_clock import Clock

BACKGROUND = -30.0  # logit where no window looked, that is in air
Corner = tuple[int, int, int]  # the first voxel of a window
# (batch, *window, C) float32 and the corners of its first rows -> (batch, K, *window), or an
# iterator of parts of the K, one after the other, once or several times.
Ask = Callable[[np.ndarray, Sequence[Corner]], Any]


class NonFiniteLogitsError(UserError):
  """The network returned infinity or NaN; a mask made from it would be wrong without a sign."""

  def __init__(self) -> None:
    super().__init__(
      "the network's output is not finite; use another checkpoint, or float32 "
      '(model.dtype in its config.json)'
    )


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

  size: tuple[int, ...]
  shape: tuple[int, ...]
  padded: tuple[int, ...]
  before: tuple[int, ...]
  planes: dict[int, Sequence[Corner]]

  def region(self, corner: Sequence[int]) -> tuple[slice, ...]:
    """The voxels of a window of the padded scan."""
    return tuple(slice(c, c + w) for c, w in zip(corner, self.size, strict=True))

  @property
  def scan(self) -> tuple[slice, ...]:
    """Where the scan lies in the padded one."""
    return tuple(slice(b, b + n) for b, n in zip(self.before, self.shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a scan is cut into windows.

  Attributes:
    window: voxels of a window, three numbers.
    overlap: between neighbouring windows, in [0, 1).
    batch_size: windows a call; the last batch of a plane is padded with air.
    skip_air: leave out windows without a voxel above 0.
  """

  window: tuple[int, ...]
  overlap: float = 0.5
  batch_size: int = 1
  skip_air: bool = True


class Watch(Protocol):
  """Takes the place of `predict` and sees which windows it is asked about."""

  def begin(self, windows: Windows) -> None:
    """Called once, before the first batch."""

  def predict(self, batch: np.ndarray, corners: Sequence[Corner]) -> Any:
    """As `predict` of `sliding_window`; the corners of its rows, fewer where rows are padding.

    Returns:
      (batch, K, *window) float32, of the device or the host.
    """


class Blend(Protocol):
  """Sums of weighted logits over one window depth of planes, which moves along the scan."""

  def add(self, corners: Sequence[Corner], logits: Any, first: int) -> None:
    """Adds (B, k, *window) logits; the corners of their first rows, which lie in the planes held.

    They are of the classes from number `first` on; those of a window come in order, once or several
    times.
    """

  def finish(self, first: int, end: int) -> Iterator[Any]:
    """Yields what becomes of the planes [first, end); `first` is the first one held."""

  def forget(self, planes: int) -> None:
    """Moves on by some planes."""


def tile(image: np.ndarray, tiling: Tiling) -> tuple[np.ndarray, Windows]:
  """The image, padded where it is smaller than a window, and its windows."""
  shape, window = image.shape[:3], tiling.window
  missing = [max(w - n, 0) for w, n in zip(window, shape, strict=True)]
  padding = [(m // 2, m - m // 2) for m in missing]
  image = np.pad(image, [*padding, (0, 0)]) if any(missing) else image
  starts = [
    window_starts(n, w, tiling.overlap) for n, w in zip(image.shape[:3], window, strict=True)
  ]
  before = tuple(m // 2 for m in missing)
  windows = Windows(tuple(window), shape, image.shape[:3], before, {})
  for first in starts[0]:
    corners = [(first, j, k) for j in starts[1] for k in starts[2]]
    windows.planes[first] = [
      corner for corner in corners if not tiling.skip_air or image[windows.region(corner)].any()
    ]
  return image, windows


class _HostBlend:
  """A `Blend` in the memory of the host, which yields slabs of mean logits.

  Args:
    windows: of the scan.
    classes: K, or None for all that the network returns.
  """

  def __init__(self, windows: Windows, classes: int | None):
    self._windows = windows
    self._classes = classes
    self._weights = gaussian_weights(windows.size)
    # (K, window[0], H, W) and (window[0], H, W); None until a window has told what K is.
    self._total: np.ndarray | None = None
    self._mass: np.ndarray | None = None

  def add(self, corners: Sequence[Corner], logits: np.ndarray, first: int) -> None:
    """See `Blend`."""
    for corner, values in zip(corners, logits, strict=False):
      self._add(corner, values, first)

  def _add(self, corner: Corner, logits: np.ndarray, first: int) -> None:
    if self._total is None or self._mass is None:
      count = self._classes or len(logits)
      planes = self._windows.size[0], *self._windows.padded[1:]
      self._total, self._mass = np.zeros((count, *planes), np.float32), np.zeros(planes, np.float32)
    region = (slice(None), *self._windows.region(corner)[1:])
    part = self._total[first : first + len(logits)]
    # Class by class: no second array of K maps. Of a last part, not all may be asked for.
    for summed, values in zip(part, logits, strict=False):
      summed[region] += values * self._weights
    if not first:
      self._mass[region] += self._weights

  def finish(self, first: int, end: int) -> Iterator[np.ndarray]:
    """Yields what of the planes [first, end) lies in the scan; `first` is the first one held."""
    scan = self._windows.scan
    low, high = max(first, scan[0].start), min(end, scan[0].stop)
    if low >= high:
      return
    if self._total is None or self._mass is None:
      yield np.full((1, high - low, *self._windows.shape[1:]), BACKGROUND, np.float32)
      return
    where = (slice(low - first, high - first), *scan[1:])
    seen = self._mass[where]
    unseen = seen == 0
    seen[unseen] = 1
    for summed in self._total:
      summed[where] /= seen
      summed[where][unseen] = BACKGROUND
    yield self._total[:, *where]

  def forget(self, planes: int) -> None:
    """Moves on by some planes."""
    if self._total is None or self._mass is None:
      return
    for buffer in (*self._total, self._mass):
      buffer[:-planes] = buffer[planes:].copy()
      buffer[-planes:] = 0


def sliding_window(
  predict: Callable[[np.ndarray], Any],
  image: np.ndarray,
  tiling: Tiling,
  *,
  classes: int | None = None,
  clock: Clock | None = None,
  watch: Watch | None = None,
) -> Iterator[np.ndarray]:
  """Blended logits of a scan, in slabs along the first axis.

  Args:
    predict: (batch_size, *window, C) float32 -> (batch_size, K, *window) float32, or an iterator
      of parts of the K, one after the other; always called with this one shape, so that nothing is
      compiled twice. Where parts begin again after the K-th class, their mean counts.
    image: (D, H, W, C) float32 in [0, 1]; 0 is air.
    tiling: windows, and how many of them a call.
    classes: K, where `predict` returns more of them, or parts; the first ones are kept.
    clock: counts the time spent in `predict` and waiting for it as 'network'; 'windows', and
      'bytes_to_device' and 'bytes_from_device' that went into it and came out.
    watch: predicts in place of `predict`.

  Yields:
    Slabs (K, d_i, H, W) float32, in order, sum of d_i = D; of one class, all `BACKGROUND`, before
    the first window that is not air. Each is overwritten when the next one is made.
  """
  image, windows = tile(image, tiling)
  blend, ask = _HostBlend(windows, classes), asking(predict, windows, watch)
  return visit(ask, image, windows, tiling.batch_size, blend, classes=classes, clock=clock)


def asking(predict: Callable[[np.ndarray], Any], windows: Windows, watch: Watch | None) -> Ask:
  """What is asked for the logits of a scan's windows: the watch, or `predict` where none is.

  Args:
    predict: see `sliding_window`.
    windows: of the scan.
    watch: is told that they begin.
  """
  if watch is None:
    return lambda batch, _: predict(batch)
  watch.begin(windows)
  return watch.predict


def visit(
  ask: Ask,
  image: np.ndarray,
  windows: Windows,
  batch_size: int,
  blend: Blend,
  *,
  classes: int | None,
  clock: Clock | None,
) -> Iterator[Any]:
  """Predicts all windows of a scan, plane by plane, and yields what `blend` makes of them.

  Args:
    ask: of `asking`.
    image: of `tile`.
    windows: likewise.
    batch_size: windows a call.
    blend: takes the logits; only the one of the host gets them there.
    classes: see `sliding_window`.
    clock: likewise.
  """
  fetch = isinstance(blend, _HostBlend)
  ends = [*list(windows.planes)[1:], image.shape[0]]
  for (first, corners), end in zip(windows.planes.items(), ends, strict=True):
    views = [image[windows.region(corner)] for corner in corners]
    parts = _predict_batches(ask, views, corners, batch_size, classes, clock or Clock(), fetch)
    for batch, logits, number in parts:
      blend.add(corners[batch.start : batch.stop], logits, number)
    yield from blend.finish(first, end)
    if end < image.shape[0]:
      blend.forget(end - first)


def _predict_batches(
  ask: Ask,
  views: Sequence[np.ndarray],
  corners: Sequence[Corner],
  batch_size: int,
  classes: int | None,
  clock: Clock,
  fetch: bool,
) -> Iterator[tuple[range, Any, int]]:
  """Yields (views, their logits, number of the first class) for each batch and part.

  The next batch is on its way to the device before the last one is waited for, so that device and
  host work at the same time, and never more than two are in the device's memory.
  """

  def logits_of(batch: range, result: Any) -> Iterator[tuple[range, Any, int]]:
    parts = result if isinstance(result, Iterator) else iter((result,))
    first, last = 0, None
    while True:
      with clock('network'):
        part = next(parts, None)
        if part is not None and fetch:
          part = np.asarray(part)
          clock.count('bytes_from_device', part.nbytes)
        elif part is None and last is not None:
          jax.block_until_ready(last)
      if part is None:
        return
      yield batch, part, first
      first, last = first + part.shape[1], None if fetch else part
      if classes and first >= classes:  # the next part is of another pass
        first = 0

  pending = None
  for at in range(0, len(views), batch_size):
    batch = range(at, min(at + batch_size, len(views)))
    stack = np.zeros((batch_size, *views[0].shape), np.float32)
    for row, n in enumerate(batch):
      stack[row] = views[n]
    clock.count('windows', len(batch))
    clock.count('bytes_to_device', stack.nbytes)
    with clock('network'):
      result = ask(stack, corners[batch.start : batch.stop])
    if pending is not None:
      yield from logits_of(*pending)
    pending = (batch, result)
  if pending is not None:
    yield from logits_of(*pending)
