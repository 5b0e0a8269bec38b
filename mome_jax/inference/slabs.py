"""Logits of a scan on its own grid, in slabs of planes: interpolated one class at a time."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from input_pipeline.ct import resample

SURE = 0.75  # probability
UNSURE = math.log(SURE / (1 - SURE))  # a positive logit below it
# Of each voxel along an axis: the coarse ones below and above it, and the weight of the upper one.
AxisWeights = tuple[np.ndarray, np.ndarray, np.ndarray]


class Planes(Protocol):
  """What can be asked of some planes of a scan while they are at hand; see `Slab`."""

  @property
  def planes(self) -> slice: ...

  @property
  def shape(self) -> tuple[int, ...]: ...

  def logits(self, k: int) -> np.ndarray: ...

  def positive(self, k: int) -> tuple[tuple[slice, ...], np.ndarray] | None: ...

  def sure(self, k: int) -> tuple[int, int]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Slab:
  """Logits of K classes in some planes of a scan, interpolated one class at a time.

  Attributes:
    planes: of the scan, along its first axis.
    shape: (d, H, W) of these planes.
    parts: coarse logits (K, d_i, H_c, W_c) or, of air, (1, d_i, H_c, W_c), one after the other.
    axes: of each axis, what `resample.axis_weights` gives: where the planes lie in the parts.
  """

  planes: slice
  shape: tuple[int, ...]
  parts: Sequence[np.ndarray]
  axes: Sequence[AxisWeights]

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

  def sure(self, k: int) -> tuple[int, int]:
    """How many voxels of class k have a logit above 0, and of them one below `UNSURE`."""
    claim = self.positive(k)
    if claim is None:
      return 0, 0
    over = claim[1] > 0
    return int(over.sum()), int((over & (claim[1] < UNSURE)).sum())

  def _coarse(self, k: int) -> np.ndarray:
    return np.concatenate([part[min(k, len(part) - 1)] for part in self.parts])

  def _interpolate(self, maps: np.ndarray, axes: Sequence[AxisWeights]) -> np.ndarray:
    # The axis that grows most last: the others then have less to do.
    for axis in sorted(range(3), key=lambda a: len(axes[a][0]) / maps.shape[a]):
      maps = resample.interpolate(maps, axis, *axes[axis])
    return maps


def resample_slabs(
  slabs: Iterable[np.ndarray],
  shape: Sequence[int],
  spacing: Sequence[float] | np.ndarray,
  target_shape: Sequence[int],
  target_spacing: Sequence[float] | np.ndarray,
  *,
  max_bytes: int = 64 << 20,
) -> Iterator[Slab]:
  """Trilinear interpolation of a stream of slabs onto another grid with the same centre.

  Args:
    slabs: (K, d_i, H, W) float32, in order, that make up `shape`; each may be overwritten when the
      next one is asked for.
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
  parts: list[np.ndarray] = []
  first = emitted = 0  # `first` is the plane that the parts begin with
  for slab in slabs:
    parts.append(slab)
    end = first + sum(part.shape[1] for part in parts)
    ready = int(np.searchsorted(upper, end))
    for start in range(emitted, ready, planes):
      rows = slice(start, min(start + planes, ready))
      along = lower[rows] - first, upper[rows] - first, weight[rows]
      size = (rows.stop - rows.start, *target_shape[1:])
      yield Slab(rows, size, parts, [along, *axes[1:]])
    emitted = max(emitted, ready)
    # The next plane may lie between the last one of this slab and the first one of the next.
    needed = emitted < len(lower) and lower[emitted] < end
    parts, first = ([slab[:, -1:].copy()], end - 1) if needed else ([], end)
