"""A mask that is kept as compressed bits: many of them fit into memory, whatever the scan."""

import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Box = tuple[slice, ...]  # slices along the three axes of a scan


class PackedMask:
  """A mask on the grid of a scan, made slab by slab: (D, H, W) bool where it is sliced.

  Args:
    shape: (D, H, W).
  """

  def __init__(self, shape: Sequence[int]):
    self.shape = tuple(shape)
    self._parts: list[tuple[Box, bytes]] = []

  def add(self, box: Box, values: np.ndarray) -> None:
    """Sets the voxels of a box, which no other call covers, to bool values of its shape."""
    if values.any():
      self._parts.append((box, zlib.compress(np.packbits(values).tobytes(), 1)))

  def __getitem__(self, where: Any) -> np.ndarray:
    mask = np.zeros(self.shape, bool)
    for box, values in self._unpacked():
      mask[box] = values
    return mask[where]

  @functools.cached_property
  def box(self) -> Box | None:
    """Slices around all of its voxels; None without any. Of the whole mask."""
    spans = []
    for box, values in self._unpacked():
      around = [np.flatnonzero(values.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
      spans.append(
        [(s.start + int(a[0]), s.start + int(a[-1]) + 1) for s, a in zip(box, around, strict=True)]
      )
    if not spans:
      return None
    return tuple(
      slice(min(low for low, _ in axis), max(high for _, high in axis))
      for axis in zip(*spans, strict=True)
    )

  def _unpacked(self) -> Iterator[tuple[Box, np.ndarray]]:
    for box, packed in self._parts:
      shape = [span.stop - span.start for span in box]
      bits = np.frombuffer(zlib.decompress(packed), np.uint8)
      yield box, np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
