"""Blending, interpolation and decision on the device; finished labels alone come to the host.

The same as `sliding_window`, `slabs` and `segmentation.decide` do on the host, up to rounding:
where two logits differ by less than that, or one of them lies as near to 0, another class may win.
One window depth of K maps is held on the device, and the plane before it. Grids are filled up to
sizes that scans share, so that hardly any scan needs a program of its own, however many slices it
has.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.anatomy import Template
from input_pipeline.ct import resample
from mome_jax.inference.packed_mask import Box
from mome_jax.inference.segmentation import containers, index_type, over_bytes
from mome_jax.inference.slabs import UNSURE, AxisWeights
from mome_jax.inference.sliding_window import (
  BACKGROUND,
  Corner,
  NonFiniteLogitsError,
  Windows,
  gaussian_weights,
)
from mome_jax.inference.stage_clock import Clock

_ROUND = 32  # voxels: planes of about the same size share their programs
_ROUND_ROWS = 8  # the same of planes that are decided at a time, whose number goes by the spacing


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
  """What is decided of some planes of a scan, and what can still be asked of them.

  Attributes:
    planes: of the scan, along its first axis.
    shape: (d, H, W) of these planes.
    winner: (d, H, W) as of `segmentation.decide`.
    over: (d, H, W, bytes) likewise.
    free: (F, d, H, W) bool, where what competes with nothing is over its threshold.
    counts: (K, 2) as `sure` gives them.
  """

  planes: slice
  shape: tuple[int, ...]
  winner: np.ndarray
  over: np.ndarray
  free: np.ndarray
  counts: np.ndarray
  fetch: Any = dataclasses.field(repr=False)

  def logits(self, k: int) -> np.ndarray:
    """(d, H, W) float32 of class k, brought to the host; until the next planes are asked for."""
    return self.fetch(k)

  def positive(self, k: int) -> tuple[Box, np.ndarray] | None:
    """As of `slabs.Slab`; the box is that of all planes."""
    if not self.counts[k, 0]:
      return None
    return tuple(slice(0, n) for n in self.shape), self.logits(k)

  def sure(self, k: int) -> tuple[int, int]:
    """As of `slabs.Slab`."""
    return int(self.counts[k, 0]), int(self.counts[k, 1])


@dataclasses.dataclass(frozen=True)
class Classes:
  """What is decided between.

  Attributes:
    names: of the classes that compete.
    free: number of those that follow them and compete with nothing.
    template: tells which classes contain which.
  """

  names: Sequence[str]
  free: int
  template: Template


@dataclasses.dataclass(frozen=True, eq=False)
class Grids:
  """Where logits are computed, and where they are decided.

  Attributes:
    windows: of the scan on the network's grid.
    spacing: (3,) mm of that grid.
    shape: (D, H, W) of the scan.
    target_spacing: (3,) mm of the scan.
  """

  windows: Windows
  spacing: Sequence[float]
  shape: Sequence[int]
  target_spacing: Sequence[float] | np.ndarray

  def axes(self) -> list[AxisWeights]:
    """`resample.axis_weights` of each axis, from the padded scan on the network's grid."""
    axes = []
    for n, mm, m, to, before in zip(
      self.windows.shape,
      self.spacing,
      self.shape,
      self.target_spacing,
      self.windows.before,
      strict=True,
    ):
      lower, upper, weight = resample.axis_weights(n, mm, m, float(to))
      axes.append((lower + before, upper + before, weight))
    return axes


class Decider:
  """Takes the place of blend, slabs and decision on the host, for one scan.

  Args:
    grids: of the network and the scan.
    classes: that are decided between.
    clock: counts bytes that travel.
    max_bytes: of one map of the planes that are decided at a time.
  """

  def __init__(self, grids: Grids, classes: Classes, clock: Clock, *, max_bytes: int = 64 << 20):
    self._windows, self._clock, self._shape = grids.windows, clock, tuple(grids.shape)
    self._free, self._classes = classes.free, len(classes.names) + classes.free
    self._tables = _tables(classes.names, classes.template)
    self._axes = grids.axes()
    ready = grids.windows.size[0] / 2 * grids.spacing[0] / grids.target_spacing[0]
    plane = 4 * _up(self._shape[1], _ROUND) * _up(self._shape[2], _ROUND)
    self._rows = _rows(math.ceil(ready) + 1, max(1, max_bytes // plane))
    self._kinds = index_type(classes.names), over_bytes(self._tables['around'].tolist())
    self._total: jax.Array | None = None
    self._mass: jax.Array | None = None
    self._emitted = 0

  def add(self, corners: Sequence[Corner], logits: Any, first: int = 0) -> None:
    """Adds (B, k, *window) logits of the windows at some corners, those of its first rows.

    Args:
      corners: of the windows, which lie in the planes held.
      logits: of some of the classes, on the device or the host; those of a window come in order,
        once or several times.
      first: number of the first class.
    """
    logits = jnp.asarray(logits)
    if self._total is None or self._mass is None:
      self._begin(logits)
    place = np.zeros((len(logits), 2), np.int32)
    place[: len(corners)] = [corner[1:] for corner in corners]
    valid = np.arange(len(logits)) < len(corners)
    self._total, self._mass = self._programs.add(
      self._total, self._mass, logits, self._weights, place, valid, np.int32(first)
    )

  def _begin(self, logits: jax.Array) -> None:
    """Empty sums, where the logits are: the plane before the first one is background."""
    where = logits.sharding
    if isinstance(where, jax.sharding.NamedSharding):
      where = jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec())
    self._programs = _programs(where)
    step = logits.shape[1]
    height, width = (_up(n, _ROUND) for n in self._windows.padded[1:])
    planes = self._windows.size[0] + 1, height, width
    count = -(-self._classes // step) * step
    self._total, self._mass = self._programs.begin((count, *planes))
    self._weights = self._send(gaussian_weights(self._windows.size), where)
    self._sent = [
      tuple(self._send(array, where) for array in _compact(axis, _up(n, _ROUND)))
      for axis, n in zip(self._axes[1:], self._shape[1:], strict=True)
    ]
    self._order = {name: self._send(table, where) for name, table in self._tables.items()}

  def _send(self, array: np.ndarray, where: Any) -> jax.Array:
    self._clock.count('bytes_to_device', array.nbytes)
    return jax.device_put(array, where)

  def _take(self, array: jax.Array) -> np.ndarray:
    fetched = np.asarray(array)
    self._clock.count('bytes_from_device', fetched.nbytes)
    return fetched

  def finish(self, first: int, end: int) -> Iterator[Finished]:
    """Decides what lies before plane `end` of the padded scan; `first` is the first one held.

    Raises:
      NonFiniteLogitsError: if the network overflowed.
    """
    last = min(end, self._windows.scan[0].stop)
    ready = int(np.searchsorted(self._axes[0][1], last))
    if self._total is not None:
      self._total, self._mass, finite = self._programs.finish(
        self._total, self._mass, np.int32(end - first)
      )
      if not self._take(finite):
        raise NonFiniteLogitsError
    for start in range(self._emitted, ready, self._rows):
      rows = slice(start, min(start + self._rows, ready))
      yield self._decide(rows, first)
    self._emitted = max(self._emitted, ready)

  def forget(self, planes: int) -> None:
    """Moves on by some planes; the last of them stays as the plane before the others."""
    if self._total is not None:
      self._total, self._mass = self._programs.forget(self._total, self._mass, np.int32(planes))

  def _decide(self, rows: slice, first: int) -> Finished:
    count = rows.stop - rows.start
    shape = count, *self._shape[1:]
    kind, size = self._kinds
    if self._total is None:  # nothing but air so far
      return Finished(
        rows,
        shape,
        np.zeros(shape, kind),
        np.zeros((*shape, size), np.uint8),
        np.zeros((self._free, *shape), bool),
        np.zeros((self._classes, 2), np.int64),
        lambda k: np.full(shape, BACKGROUND, np.float32),
      )
    lower, upper, weight = (array[rows] for array in self._axes[0])
    along = _compact((lower - (first - 1), upper - (first - 1), weight), self._rows)
    axes = [along, *self._sent]
    winner, over, free, counts = self._programs.decide(
      self._total, axes, self._order, np.array(shape, np.int32), self._free, kind, size
    )
    total, inside = self._total, tuple(slice(0, n) for n in shape)

    def fetch(k: int) -> np.ndarray:
      return self._take(self._programs.interpolate(total, np.int32(k), axes))[inside]

    packed = self._take(free)[:, *inside[:2]] if self._free else np.zeros((0, *shape), np.uint8)
    return Finished(
      rows,
      shape,
      self._take(winner)[inside],
      # Without a container there is nothing to bring.
      self._take(over)[inside]
      if self._tables['around'].size
      else np.zeros((*shape, size), np.uint8),
      np.unpackbits(packed, axis=-1, count=shape[-1]).astype(bool),
      self._take(counts),
      fetch,
    )


def _rows(ready: int, most: int) -> int:
  """Planes that are decided at a time, of those that half a window makes ready: even parts.

  The same whatever the length of the scan; calls with fewer planes are filled up.
  """
  return _up(-(-ready // -(-ready // most)), _ROUND_ROWS)


def _up(size: int, step: int) -> int:
  return -(-size // step) * step


def _compact(axis: tuple[np.ndarray, ...], size: int) -> tuple[np.ndarray, ...]:
  """The weights of an axis, the last ones repeated up to a size."""
  lower, upper, weight = (np.pad(array, (0, size - len(array)), 'edge') for array in axis)
  return lower.astype(np.int32), upper.astype(np.int32), weight


def _tables(names: Sequence[str], template: Template) -> dict[str, np.ndarray]:
  """Of `segmentation.decide`: the classes, innermost first, and what of them contains what.

  Returns:
    'order' (K,) int32; of each in this order 'bit' (K,) int32, its place among the containers, -1
    for none, and 'outer' (K, max(1, A)) bool, the containers around it; 'around' (A,) int32.
  """
  around = [names.index(name) for name in containers(names, template)]
  outer = np.zeros((len(names), max(1, len(around))), bool)
  for k, name in enumerate(names):
    outer[k, : len(around)] = [template.contains(names[o], name) for o in around]
  order = sorted(range(len(names)), key=lambda k: -outer[k].sum())
  bit = [around.index(k) if k in around else -1 for k in order]
  return {
    'order': np.array(order, np.int32),
    'bit': np.array(bit, np.int32),
    'outer': outer[order],
    'around': np.array(around, np.int32),
  }


@dataclasses.dataclass(frozen=True)
class _Programs:
  begin: Any
  add: Any
  finish: Any
  forget: Any
  interpolate: Any
  decide: Any


@functools.cache
def _programs(where: Any) -> _Programs:
  """Compiled once for the devices of a sharding; the sums are donated."""
  jit = functools.partial(jax.jit, out_shardings=where)
  return _Programs(
    jit(_begin, static_argnums=0),
    jit(_add, donate_argnums=(0, 1)),
    jit(_finish, donate_argnums=(0, 1)),
    jit(_forget, donate_argnums=(0, 1)),
    jit(_interpolate),
    jit(_decide, static_argnums=(4, 5, 6)),
  )


def _begin(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  return jnp.zeros(shape, jnp.float32), jnp.zeros(shape[1:], jnp.float32)


def _add(total, mass, logits, weights, place, valid, first):
  """Adds weighted logits (B, k, *window), window by window, from plane 1 on."""
  size = logits.shape[1:]

  def one(row, sums):
    total, mass = sums
    y, x = place[row, 0], place[row, 1]
    corner = first, 1, y, x
    values = jnp.where(valid[row], logits[row].astype(jnp.float32) * weights, 0)
    total = jax.lax.dynamic_update_slice(
      total, jax.lax.dynamic_slice(total, corner, size) + values, corner
    )
    seen = jnp.where(valid[row] & (first == 0), weights, 0)
    part = jax.lax.dynamic_slice(mass, corner[1:], size[1:])
    return total, jax.lax.dynamic_update_slice(mass, part + seen, corner[1:])

  return jax.lax.fori_loop(0, len(logits), one, (total, mass))


def _finish(total, mass, planes):
  """Sums become means in the planes 0 to `planes`; and whether these are finite."""
  done = (jnp.arange(len(mass)) <= planes)[:, None, None]
  seen = mass > 0
  mean = jnp.where(seen, total / jnp.where(seen, mass, 1), BACKGROUND)
  finite = jnp.isfinite(jnp.where(done, mean, 0)).all()
  return jnp.where(done, mean, total), jnp.where(done, 1, mass), finite


def _forget(total, mass, planes):
  """The planes from `planes` on come first, with none of a window behind them."""
  kept = (jnp.arange(len(mass)) <= len(mass) - 1 - planes)[:, None, None]
  rolled = jnp.roll(total, -planes, 1), jnp.roll(mass, -planes, 0)
  return tuple(jnp.where(kept, array, 0) for array in rolled)


def _interpolate(total, k, axes):
  """(rows, H, W) float32 of a class, as `resample.interpolate` along one axis after the other."""
  maps = jax.lax.dynamic_index_in_dim(total, k, keepdims=False)
  for axis, (lower, upper, weight) in enumerate(axes):
    low, high = jnp.take(maps, lower, axis), jnp.take(maps, upper, axis)
    shape = [-1 if a == axis else 1 for a in range(3)]
    maps = low + (high - low) * weight.reshape(shape)
  return maps


def _decide(total, axes, tables, shape, free, kind, size):
  """Winner, containers over their threshold, free masks as bits, and counts of each class.

  The counts are of the voxels inside `shape`; beyond, the axes are filled up.
  """
  fine = len(axes[0][0]), len(axes[1][0]), len(axes[2][0])
  x, y, z = jnp.meshgrid(*map(jnp.arange, fine), indexing='ij', sparse=True)
  valid = (x < shape[0]) & (y < shape[1]) & (z < shape[2])
  rivals, outers = tables['outer'].shape

  def counted(leaf, logits):
    unsure = leaf & (logits < UNSURE)
    return jnp.stack([(part & valid).sum(dtype=jnp.int32) for part in (leaf, unsure)])

  def one(carry, row):
    winner, best, over, covered = carry
    k, bit, outer = row
    logits = _interpolate(total, k, axes)
    leaf = logits > 0
    counts = counted(leaf, logits)
    bits = leaf.astype(jnp.uint8) << (7 - bit % 8).astype(jnp.uint8)
    over = over | jnp.where((jnp.arange(size) == bit // 8) & (bit >= 0), bits[..., None], 0)
    inside = covered[jnp.maximum(bit, 0)] & (bit >= 0)
    covered = covered | (leaf & outer[:, None, None, None])
    number = (k + 1).astype(winner.dtype)
    tie = (logits == best) & (number < winner)
    takes = leaf & ~inside & ((logits > best) | tie)
    winner, best = jnp.where(takes, number, winner), jnp.where(takes, logits, best)
    return (winner, best, over, covered), counts

  begin = (
    jnp.zeros(fine, kind),
    jnp.zeros(fine, jnp.float32),
    jnp.zeros((*fine, size), jnp.uint8),
    jnp.zeros((outers, *fine), bool),
  )
  rows = tables['order'], tables['bit'], tables['outer']
  (winner, _, over, _), counts = jax.lax.scan(one, begin, rows)
  counts = jnp.zeros_like(counts).at[tables['order']].set(counts)

  def alone(k):
    logits = _interpolate(total, k, axes)
    return jnp.packbits(logits > 0, axis=-1), counted(logits > 0, logits)

  if not free:
    return winner, over, jnp.zeros((0, *fine), jnp.uint8), counts
  masks, others = jax.lax.map(alone, jnp.arange(rivals, rivals + free))
  return winner, over, masks, jnp.concatenate([counts, others])
