"""From a scan to class masks on its own grid: the one path that evaluation and prediction share."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from input_pipeline import resample
from input_pipeline.anatomy import TEMPLATE, Template
from mome_jax import inference, postprocess
from mome_jax.clock import Clock


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Masks of K classes on the grid of a scan.

  Attributes:
    names: of the K classes.
    winner: (D, H, W) uint8; 1-based index into `names` of the class that owns the voxel, 0 none.
    over: (D, H, W, max(1, ceil(N / 8))) uint8; bit n set where class n of `containers(names)` is
      over its threshold, which its own voxels and those of structures inside it may be.
    template: tells which classes contain which.
  """

  names: tuple[str, ...]
  winner: np.ndarray
  over: np.ndarray
  template: Template = TEMPLATE

  def mask(self, name: str, where=...) -> np.ndarray:
    """(D, H, W) bool: voxels of the class, those of structures inside it included.

    An organ under its tumour stays an organ where its own probability says so.

    Args:
      name: of the class.
      where: index of the part that is wanted, such as three slices.
    """
    owner = np.zeros(256, bool)
    owner[self._owners(name)] = True
    owned = owner[self.winner[where]]
    return owned & self.is_over(name, where) if name in self.containers else owned

  @property
  def containers(self) -> tuple[str, ...]:
    """The classes that have a bit in `over`."""
    return containers(self.names, self.template)

  def is_over(self, name: str, where=...) -> np.ndarray:
    """(D, H, W) bool: where one of `containers` is over its threshold."""
    n = self.containers.index(name)
    return ((self.over[..., n // 8][where] >> (7 - n % 8)) & 1).astype(bool)

  def boxes(self) -> dict[str, tuple[slice, ...] | None]:
    """For each class, slices around all of its voxels; None where it has none."""
    found = dict(enumerate(ndimage.find_objects(self.winner, len(self.names)), 1))
    boxes = {}
    for name in self.names:
      parts = [found[k] for k in self._owners(name) if found[k] is not None]
      spans = [
        slice(min(s.start for s in axis), max(s.stop for s in axis))
        for axis in zip(*parts, strict=True)
      ]
      boxes[name] = tuple(spans) if spans and self.mask(name, tuple(spans)).any() else None
    return boxes

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

  def __getitem__(self, where) -> np.ndarray:
    return self.segmentation.mask(self.name, where)


def containers(names: Sequence[str], template: Template = TEMPLATE) -> tuple[str, ...]:
  """Those of some classes that contain another one of them."""
  return tuple(n for n in names if any(template.contains(n, inner) for inner in names))


def decide(logits: np.ndarray, names: Sequence[str], template: Template = TEMPLATE):
  """Which containers are over the threshold, and which class owns each voxel.

  Of the classes over probability 0.5 every ancestor of another is dropped (the organ under its
  tumour); of the rest the most probable wins, ties to the lower index.

  Args:
    logits: (D, H, W, K) float32.
    names: K class names; those outside the template have no ancestors.
    template: of the names.

  Returns:
    over (D, H, W, max(1, ceil(N / 8))) uint8, packed bits of the N `containers`; winner (D, H, W)
    uint8, 0 for none.
  """
  over = logits > 0
  leaf = over.copy()
  for k, name in enumerate(names):
    for outer, other in enumerate(names):
      if template.contains(other, name):
        leaf[..., outer] &= ~over[..., k]
  best = np.where(leaf, logits, -np.inf).argmax(-1) + 1
  winner = np.where(over.any(-1), best, 0).astype(np.uint8)
  around = [names.index(name) for name in containers(names, template)]
  if not around:
    return np.zeros((*winner.shape, 1), np.uint8), winner
  return np.packbits(over[..., around], axis=-1), winner


class NonFiniteLogitsError(FloatingPointError):
  """The network returned infinity or NaN; a mask made from it would be wrong without a sign."""


def _checked(slabs):
  for slab in slabs:
    if not np.isfinite(slab).all():
      raise NonFiniteLogitsError(
        "the network's output is not finite; use another checkpoint, or float32 "
        '(model.dtype in its config.json)'
      )
    yield slab


class Segmenter:
  """Segments scans with fixed weights and a fixed list of prompts.

  Args:
    predict: (batch, *window, C) float32 -> (batch, *window, K) float32, or more classes, of which
      the first K count.
    names: K class names, in the order of the logits.
    spacing: mm of the grid the network works on.
    windows: HU windows, one input channel each.
    evaluation: `config.evaluation`: window, overlap, batch_size, postprocess.
    template: tells which classes contain which.
    rules: of `postprocess.RULES`; None is `evaluation.postprocess`.
    overlap: in place of that of `evaluation`.
    devices: that share a batch of windows; its size is rounded up to a multiple.

  Raises:
    PostprocessError: if a rule is unknown.
  """

  def __init__(
    self,
    predict: Callable[[np.ndarray], np.ndarray],
    *,
    names: Sequence[str],
    spacing: Sequence[float],
    windows: Sequence[tuple[float, float]],
    evaluation,
    template: Template = TEMPLATE,
    rules: Sequence[str] | None = None,
    overlap: float | None = None,
    devices: int = 1,
  ):
    self.names = tuple(names)
    self._predict = predict
    self.spacing = tuple(spacing)
    self.windows = tuple(windows)
    self.window = tuple(evaluation.window)
    self._overlap = evaluation.overlap if overlap is None else overlap
    self._batch_size = -(-evaluation.batch_size // devices) * devices
    self._template = template
    self.rules = tuple(evaluation.get('postprocess', ()) if rules is None else rules)
    postprocess.check(self.rules)

  def network_input(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(D, H, W) HU at `spacing` mm -> (D', H', W', C) float32 in [0, 1] on the network's grid."""
    coarse = resample.resample(image.astype(np.float32), spacing, self.spacing, order=1)
    low, high = np.array(self.windows, np.float32).T
    return np.clip((coarse[..., None] - low) / (high - low), 0, 1)

  def __call__(
    self,
    image: np.ndarray,
    spacing: Sequence[float],
    on_slab: Callable[[slice, np.ndarray], None] = lambda planes, logits: None,
    *,
    clock: Clock | None = None,
  ) -> Segmentation:
    """Segments one scan.

    Args:
      image: (D, H, W) HU, canonical axis order.
      spacing: mm along its axes.
      on_slab: called with each finished part of the scan, in order: its planes along the first
        axis, and (d, H, W, K) float32 logits, which are not kept.
      clock: counts the stages 'resample', 'network', 'blend' and 'postprocess'.

    Returns:
      Masks on the grid of `image`.

    Raises:
      NonFiniteLogitsError: if the network overflowed.
    """
    clock = clock or Clock()
    with clock('resample'):
      channels = self.network_input(image, spacing)
    with clock('blend'):
      found = self._segment(channels, image.shape, spacing, on_slab, clock)
    if not self.rules:
      return found
    with clock('postprocess'):
      return postprocess.apply(found, self.rules, spacing, postprocess.body_midline(image))

  def _segment(self, channels, shape, spacing, on_slab, clock) -> Segmentation:
    """Network input -> masks on the scan's grid, slab by slab."""
    slabs = inference.sliding_window(
      self._predict,
      channels,
      window=self.window,
      overlap=self._overlap,
      batch_size=self._batch_size,
      classes=len(self.names),
      clock=clock,
    )
    slabs = inference.resample_slabs(
      _checked(slabs), channels.shape[:3], self.spacing, shape, spacing
    )
    depth = max(1, -(-len(containers(self.names, self._template)) // 8))
    over, winner = np.empty((*shape, depth), np.uint8), np.empty(shape, np.uint8)
    done = 0
    for slab in slabs:
      full = np.broadcast_to(slab, (*slab.shape[:3], len(self.names)))
      planes = slice(done, done + len(full))
      over[planes], winner[planes] = decide(full, self.names, self._template)
      on_slab(planes, full)
      done += len(full)
    return Segmentation(self.names, winner, over, self._template)
