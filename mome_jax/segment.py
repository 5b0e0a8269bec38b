"""From a scan to class masks on its own grid: the one path that evaluation and prediction share."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline import resample
from input_pipeline.anatomy import TEMPLATE, Template
from mome_jax import inference, postprocess


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Masks of K classes on the grid of a scan.

  Attributes:
    names: of the K classes.
    winner: (D, H, W) uint8; 1-based index into `names` of the class that owns the voxel, 0 none.
    over: (D, H, W, ceil(K / 8)) uint8; bit k set where class k is over its threshold.
    template: tells which classes contain which.
  """

  names: tuple[str, ...]
  winner: np.ndarray
  over: np.ndarray
  template: Template = TEMPLATE

  def mask(self, name: str) -> np.ndarray:
    """(D, H, W) bool: voxels of the class, those of structures inside it included.

    An organ under its tumour stays an organ where its own probability says so.
    """
    k = self.names.index(name)
    owners = [k + 1] + [
      i + 1 for i, other in enumerate(self.names) if name in _ancestors(self.template, other)
    ]
    over = (self.over[..., k // 8] >> (7 - k % 8)) & 1
    return np.isin(self.winner, owners) & over.astype(bool)


def _ancestors(template: Template, name: str) -> frozenset[str]:
  return template.ancestors(name) if name in template.names() else frozenset()


def decide(logits: np.ndarray, names: Sequence[str], template: Template = TEMPLATE):
  """Which classes are over the threshold, and which one owns each voxel.

  Of the classes over probability 0.5 every ancestor of another is dropped (the organ under its
  tumour); of the rest the most probable wins, ties to the lower index.

  Args:
    logits: (D, H, W, K) float32.
    names: K class names; those outside the template have no ancestors.
    template: of the names.

  Returns:
    over (D, H, W, ceil(K / 8)) uint8, packed bits; winner (D, H, W) uint8, 0 for none.
  """
  over = logits > 0
  leaf = over.copy()
  for k, name in enumerate(names):
    for ancestor in _ancestors(template, name):
      if ancestor in names:
        leaf[..., names.index(ancestor)] &= ~over[..., k]
  best = np.where(leaf, logits, -np.inf).argmax(-1) + 1
  winner = np.where(over.any(-1), best, 0).astype(np.uint8)
  return np.packbits(over, axis=-1), winner


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
    predict: (batch, *window, C) float32 -> (batch, *window, K) float32.
    names: K class names, in the order of the logits.
    spacing: mm of the grid the network works on.
    windows: HU windows, one input channel each.
    evaluation: `config.evaluation`: window, overlap, batch_size, postprocess.
    template: tells which classes contain which.
    rules: of `postprocess.RULES`; None is `evaluation.postprocess`.

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
  ):
    self.names = tuple(names)
    self._predict = predict
    self.spacing = tuple(spacing)
    self.windows = tuple(windows)
    self.window = tuple(evaluation.window)
    self._evaluation = evaluation
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
  ) -> Segmentation:
    """Segments one scan.

    Args:
      image: (D, H, W) HU, canonical axis order.
      spacing: mm along its axes.
      on_slab: called with each finished part of the scan, in order: its planes along the first
        axis, and (d, H, W, K) float32 logits, which are not kept.

    Returns:
      Masks on the grid of `image`.

    Raises:
      NonFiniteLogitsError: if the network overflowed.
    """
    channels = self.network_input(image, spacing)
    slabs = inference.sliding_window(
      self._predict,
      channels,
      window=self.window,
      overlap=self._evaluation.overlap,
      batch_size=self._evaluation.batch_size,
    )
    slabs = inference.resample_slabs(
      _checked(slabs), channels.shape[:3], self.spacing, image.shape, spacing
    )
    parts, done = [], 0
    for slab in slabs:
      full = np.broadcast_to(slab, (*slab.shape[:3], len(self.names)))
      parts.append(decide(full, self.names, self._template))
      on_slab(slice(done, done + len(full)), full)
      done += len(full)
    over, winner = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = Segmentation(self.names, winner, over, self._template)
    if not self.rules:
      return found
    return postprocess.apply(found, self.rules, spacing, postprocess.body_midline(image))
