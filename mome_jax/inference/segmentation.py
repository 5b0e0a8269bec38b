"""Masks of some classes on the grid of a scan, and who owns a voxel that several classes claim.

The classes that a model was trained on are rivals: all of them compete for each voxel, whichever of
them is asked for. What else is asked for has a mask of its own, which may overlap anything. So no
mask depends on what it was asked for together with.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import TEMPLATE, Template
from mome_jax.inference.packed_mask import Box, PackedMask


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Masks of K rivals, and of what else was asked for, on the grid of a scan.

  Attributes:
    names: of the K classes that compete.
    winner: (D, H, W) uint8, uint16 for more than 255 classes; 1-based index into `names` of the
      class that owns the voxel, 0 none.
    over: (D, H, W, max(1, ceil(N / 8))) uint8; bit n set where class n of `containers(names)` is
      over its threshold, which its own voxels and those of structures inside it may be.
    template: tells which classes contain which.
    free: of what competes with nothing, by name: where its own probability is over 0.5.
  """

  names: tuple[str, ...]
  winner: np.ndarray
  over: np.ndarray
  template: Template = TEMPLATE
  free: Mapping[str, PackedMask] = dataclasses.field(default_factory=dict)

  def mask(self, name: str, where: Any = ...) -> np.ndarray:
    """(D, H, W) bool: voxels of the class, those of structures inside it included.

    An organ under its tumour stays an organ where its own probability says so.

    Args:
      name: of the class.
      where: index of the part that is wanted, such as three slices.
    """
    if name in self.free:
      return self.free[name][where]
    owner = np.zeros(len(self.names) + 1, bool)
    owner[self._owners(name)] = True
    owned = owner[self.winner[where]]
    return owned & self.is_over(name, where) if name in self.containers else owned

  @property
  def containers(self) -> tuple[str, ...]:
    """The classes that have a bit in `over`."""
    return containers(self.names, self.template)

  def is_over(self, name: str, where: Any = ...) -> np.ndarray:
    """(D, H, W) bool: where one of `containers` is over its threshold."""
    n = self.containers.index(name)
    return ((self.over[..., n // 8][where] >> (7 - n % 8)) & 1).astype(bool)

  @functools.cached_property
  def boxes(self) -> dict[str, Box | None]:
    """For each class, slices around all of its voxels; None where it has none."""
    from scipy import ndimage  # slow to import

    objects = ndimage.find_objects(self.winner, len(self.names))
    boxes: dict[str, Box | None] = {}
    for name in self.names:
      parts = [part for k in self._owners(name) if (part := objects[k - 1]) is not None]
      spans = [
        slice(min(s.start for s in axis), max(s.stop for s in axis))
        for axis in zip(*parts, strict=True)
      ]
      boxes[name] = tuple(spans) if spans and self.mask(name, tuple(spans)).any() else None
    return boxes | {name: mask.box for name, mask in self.free.items()}

  def label_map(self, labels: Mapping[str, int]) -> np.ndarray:
    """One label for each voxel.

    The class that owns it, or the nearest labelled one whose mask holds it; what competes with
    nothing is painted only where no class is, in the order of `labels`.

    Args:
      labels: name -> label, of some or all that have a mask.

    Returns:
      (D, H, W) unsigned integers, 0 for none of them.
    """
    dtype = np.min_scalar_type(max(labels.values(), default=0))
    painted = np.array([0, *(labels.get(name, 0) for name in self.names)], dtype)[self.winner]
    for k, name in enumerate(self.names, 1):
      around = [n for n in self.containers if n in labels and self.template.contains(n, name)]
      if name in labels or not around:
        continue
      around.sort(key=lambda n: -len(self.template.ancestors(n)))  # the innermost first
      for outer in around:
        box = self.boxes[outer]
        if box is not None:
          inside = (self.winner[box] == k) & (painted[box] == 0) & self.is_over(outer, box)
          painted[box][inside] = labels[outer]
    for name, label in labels.items():
      if name in self.free and (box := self.boxes[name]) is not None:
        painted[box][(painted[box] == 0) & self.free[name][box]] = label
    return painted

  def view(self, name: str) -> 'MaskView':
    """The mask of a class, made where it is sliced."""
    return MaskView(self, name)

  def _owners(self, name: str) -> list[int]:
    inside = [i for i, n in enumerate(self.names, 1) if self.template.contains(name, n)]
    return [self.names.index(name) + 1, *inside]


@dataclasses.dataclass(frozen=True)
class MaskView:
  """A mask that is made where it is sliced: (D, H, W) bool."""

  segmentation: Segmentation
  name: str

  @property
  def shape(self) -> tuple[int, ...]:
    """(D, H, W)."""
    return self.segmentation.winner.shape

  def __getitem__(self, where: Any) -> np.ndarray:
    return self.segmentation.mask(self.name, where)


def containers(names: Sequence[str], template: Template = TEMPLATE) -> tuple[str, ...]:
  """Those of some classes that contain another one of them."""
  return tuple(n for n in names if any(template.contains(n, inner) for inner in names))


def decide(
  positive: Callable[[int], tuple[Box, np.ndarray] | None],
  shape: Sequence[int],
  names: Sequence[str],
  template: Template = TEMPLATE,
) -> tuple[np.ndarray, np.ndarray]:
  """Which containers are over the threshold, and which class owns each voxel.

  Of the classes over probability 0.5 every ancestor of another is dropped (the organ under its
  tumour); of the rest the most probable wins, ties to the lower index.

  Args:
    positive: index of a class -> a box that holds its voxels with a logit above 0, and the float32
      logits inside it; None where it has none. Asked once for each class.
    shape: (D, H, W).
    names: K class names; those outside the template have no ancestors.
    template: of the names.

  Returns:
    over (D, H, W, max(1, ceil(N / 8))) uint8, packed bits of the N `containers`; winner (D, H, W)
    unsigned integers, 0 for none.
  """
  around = [names.index(name) for name in containers(names, template)]
  over = np.zeros((*shape, over_bytes(around)), np.uint8)
  winner, best = np.zeros(shape, index_type(names)), np.zeros(shape, np.float32)
  covered: dict[int, np.ndarray] = {}  # by a structure inside the class
  outer_of = [[o for o in around if template.contains(names[o], name)] for name in names]
  for k in sorted(range(len(names)), key=lambda k: -len(outer_of[k])):  # innermost first
    claim = positive(k)
    if claim is None:
      continue
    box, logits = claim
    leaf = logits > 0
    for outer in outer_of[k]:
      if outer not in covered:
        covered[outer] = np.zeros(shape, bool)
      covered[outer][box] |= leaf
    if k in around:
      n = around.index(k)
      over[box][..., n // 8] |= leaf.astype(np.uint8) << np.uint8(7 - n % 8)
      if k in covered:
        leaf &= ~covered[k][box]
    tie = (logits == best[box]) & (k + 1 < winner[box])
    leaf &= (logits > best[box]) | tie
    best[box][leaf] = logits[leaf]
    winner[box][leaf] = k + 1
  return over, winner


def over_bytes(around: Sequence) -> int:
  """Bytes of packed bits that hold one of each of some classes, at least one."""
  return max(1, -(-len(around) // 8))


def index_type(names: Sequence[str]) -> np.dtype:
  """The smallest unsigned integers that count some classes from 1."""
  return np.min_scalar_type(len(names))
