"""From a scan to class masks on its own grid: the one path that evaluation and prediction share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import body, resample
from input_pipeline.ct.hu_windows import hu_windows
from mome_jax.errors import UserError
from mome_jax.inference import postprocess, sliding_window
from mome_jax.inference.stage_clock import Clock


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Masks of K classes on the grid of a scan.

  Attributes:
    names: of the K classes.
    winner: (D, H, W) uint8, uint16 for more than 255 classes; 1-based index into `names` of the
      class that owns the voxel, 0 none.
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
    owner = np.zeros(len(self.names) + 1, bool)
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

  @functools.cached_property
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


def decide(
  positive: Callable[[int], tuple[tuple[slice, ...], np.ndarray] | None],
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
  over = np.zeros((*shape, _over_bytes(around)), np.uint8)
  winner, best = np.zeros(shape, _index_type(names)), np.zeros(shape, np.float32)
  covered: dict[int, np.ndarray] = {}  # by a structure inside the class
  outer_of = [[o for o in around if template.contains(names[o], name)] for name in names]
  for k in sorted(range(len(names)), key=lambda k: -len(outer_of[k])):  # innermost first
    found = positive(k)
    if found is None:
      continue
    box, logits = found
    leaf = logits > 0
    for outer in outer_of[k]:
      if outer not in covered:
        covered[outer] = np.zeros(shape, bool)
      covered[outer][box] |= leaf
    if k in around:
      n = around.index(k)
      over[(*box, n // 8)] |= leaf.astype(np.uint8) << np.uint8(7 - n % 8)
      if k in covered:
        leaf &= ~covered[k][box]
    tie = (logits == best[box]) & (k + 1 < winner[box])
    leaf &= (logits > best[box]) | tie
    best[box][leaf] = logits[leaf]
    winner[box][leaf] = k + 1
  return over, winner


def _over_bytes(around: Sequence) -> int:
  return max(1, -(-len(around) // 8))


def _index_type(names: Sequence[str]) -> np.dtype:
  return np.min_scalar_type(len(names))


class NonFiniteLogitsError(UserError):
  """The network returned infinity or NaN; a mask made from it would be wrong without a sign."""


def _checked(slabs):
  for slab in slabs:
    if not all(np.isfinite(slab[..., k]).all() for k in range(slab.shape[-1])):
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
    self.overlap = evaluation.overlap if overlap is None else overlap
    self._batch_size = -(-evaluation.batch_size // devices) * devices
    self._template = template
    self.rules = tuple(evaluation.get('postprocess', ()) if rules is None else rules)
    postprocess.check(self.rules)

  def network_input(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(D, H, W) HU at `spacing` mm -> (D', H', W', C) float32 in [0, 1] on the network's grid."""
    coarse = resample.resample(image.astype(np.float32), spacing, self.spacing, order=1)
    return hu_windows(coarse, self.windows)

  def __call__(
    self,
    image: np.ndarray,
    spacing: Sequence[float],
    on_slab: Callable[[sliding_window.Slab], object] = lambda slab: None,
    *,
    clock: Clock | None = None,
    watch: sliding_window.Watch | None = None,
  ) -> Segmentation:
    """Segments one scan.

    Args:
      image: (D, H, W) HU, canonical axis order.
      spacing: mm along its axes.
      on_slab: called with each finished part of the scan, in order; it gives the logits of any
        class in its planes until the call returns.
      clock: counts the stages 'resample', 'network', 'blend' and 'postprocess'.
      watch: of `router_maps.Explainer.watch`, for the routing maps of the same pass.

    Returns:
      Masks on the grid of `image`.

    Raises:
      NonFiniteLogitsError: if the network overflowed.
    """
    clock = clock or Clock()
    with clock('resample'):
      channels = self.network_input(image, spacing)
    with clock('blend'):
      found = self._segment(channels, image.shape, spacing, on_slab, clock, watch)
    if not self.rules:
      return found
    with clock('postprocess'):
      return postprocess.apply(found, self.rules, spacing, body.midline(image))

  def _segment(self, channels, shape, spacing, on_slab, clock, watch) -> Segmentation:
    """Network input -> masks on the scan's grid, slab by slab."""
    slabs = sliding_window.sliding_window(
      self._predict,
      channels,
      window=self.window,
      overlap=self.overlap,
      batch_size=self._batch_size,
      classes=len(self.names),
      clock=clock,
      watch=watch,
    )
    slabs = sliding_window.resample_slabs(
      _checked(slabs), channels.shape[:3], self.spacing, shape, spacing
    )
    around = containers(self.names, self._template)
    over = np.empty((*shape, _over_bytes(around)), np.uint8)
    winner = np.empty(shape, _index_type(self.names))
    for slab in slabs:
      over[slab.planes], winner[slab.planes] = decide(
        slab.positive, slab.shape, self.names, self._template
      )
      on_slab(slab)
    return Segmentation(self.names, winner, over, self._template)
