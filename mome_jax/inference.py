"""Sliding window over a whole scan with bounded memory.

Windows are visited plane by plane along the first axis; what lies behind the next plane of windows
is complete, leaves as a slab and is forgotten. So no more than one window depth of K maps is ever
held, however long the scan is.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from input_pipeline import resample
from mome_jax.clock import Clock

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

  Yields:
    Slabs (d_i, H, W, K) float32, in order, sum of d_i = D.
  """
  shape = image.shape[:3]
  missing = [max(w - n, 0) for w, n in zip(window, shape, strict=True)]
  padding = [(m // 2, m - m // 2) for m in missing]
  image = np.pad(image, [*padding, (0, 0)])
  crop = tuple(slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
  weights = gaussian_weights(window)[..., None]
  starts = [window_starts(n, w, overlap) for n, w in zip(image.shape[:3], window, strict=True)]

  total = mass = None
  for i, first in enumerate(starts[0]):
    corners = [(first, j, k) for j in starts[1] for k in starts[2]]
    views = [
      image[tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))]
      for corner in corners
    ]
    chosen = [n for n, view in enumerate(views) if not skip_air or view.any()]
    for n, logits in _predict_batches(predict, views, chosen, batch_size, clock or Clock()):
      logits = logits[..., :classes]
      if total is None:
        total = np.zeros((window[0], *image.shape[1:3], logits.shape[-1]), np.float32)
        mass = np.zeros((window[0], *image.shape[1:3], 1), np.float32)
      _, j, k = corners[n]
      region = (slice(None), slice(j, j + window[1]), slice(k, k + window[2]))
      total[region] += logits * weights
      mass[region] += weights
    last = i + 1 == len(starts[0])
    done = window[0] if last else starts[0][i + 1] - first
    yield from _finish(total, mass, first, done, crop, shape)
    if not last and total is not None:
      for buffer in (total, mass):
        buffer[:-done] = buffer[done:].copy()
        buffer[-done:] = 0


def _predict_batches(predict, views, chosen, batch_size, clock):
  """Yields (index of the view, its logits) for each chosen view.

  The next batch is on its way to the device before the last one is waited for, so that device and
  host work at the same time.
  """

  def logits_of(batch, result):
    with clock('network'):
      return zip(batch, np.asarray(result), strict=False)

  pending = None
  for at in range(0, len(chosen), batch_size):
    batch = chosen[at : at + batch_size]
    stack = np.zeros((batch_size, *views[0].shape), np.float32)
    for row, n in enumerate(batch):
      stack[row] = views[n]
    with clock('network'):
      result = predict(stack)
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
  rows = slice(low - first, high - first)
  seen = mass[rows, crop[1], crop[2]]
  yield np.where(seen > 0, total[rows, crop[1], crop[2]] / np.maximum(seen, 1e-6), BACKGROUND)


def resample_slabs(
  slabs: Iterable[np.ndarray],
  shape: Sequence[int],
  spacing: Sequence[float],
  target_shape: Sequence[int],
  target_spacing: Sequence[float],
  *,
  max_bytes: int = 64 << 20,
) -> Iterator[np.ndarray]:
  """Trilinear interpolation of a stream of slabs onto another grid with the same centre.

  Args:
    slabs: (d_i, H, W, K) float32 along the first axis, in order, that make up `shape`.
    shape: (D, H, W) of the stream.
    spacing: mm, three numbers.
    target_shape: (D', H', W') of the result.
    target_spacing: mm, three numbers.
    max_bytes: of a yielded slab.

  Yields:
    Slabs (d_j, H', W', K) float32 in order, sum of d_j = D'.
  """
  axes = [
    resample.axis_weights(n, s, m, t)
    for n, s, m, t in zip(shape, spacing, target_shape, target_spacing, strict=True)
  ]
  lower, upper, weight = axes[0]
  held, first, emitted = None, 0, 0
  for slab in slabs:
    held = slab if held is None else np.concatenate([_like(held, slab), slab])
    ready = int(np.searchsorted(upper, first + len(held)))
    planes = max(1, max_bytes // (4 * target_shape[1] * target_shape[2] * slab.shape[-1]))
    for start in range(emitted, ready, planes):
      rows = slice(start, min(start + planes, ready))
      block = _blend(held, 0, lower[rows] - first, upper[rows] - first, weight[rows])
      for axis in (1, 2):
        block = _blend(block, axis, *axes[axis])
      yield block
    emitted = max(emitted, ready)
    # Planes before the next one needed are done with; that one may lie beyond this slab.
    needed = int(lower[emitted]) - first if emitted < len(lower) else len(held)
    done = min(needed, len(held))
    held, first = held[done:], first + done


def _like(held: np.ndarray, slab: np.ndarray) -> np.ndarray:
  """A slab of air has one channel until K is known."""
  return np.broadcast_to(held, (*held.shape[:3], slab.shape[-1])) if held.shape[-1] == 1 else held


def _blend(x, axis, lower, upper, weight):
  shape = [-1 if a == axis else 1 for a in range(x.ndim)]
  weight = weight.reshape(shape)
  return np.take(x, lower, axis) * (1 - weight) + np.take(x, upper, axis) * weight
