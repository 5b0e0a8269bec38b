"""From a scan to class masks on its own grid: the one path that evaluation and prediction share."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import body, resample
from input_pipeline.ct.hu_windows import hu_windows
from mome_jax.errors import UserError
from mome_jax.inference import postprocess, slabs, sliding_window
from mome_jax.inference.packed_mask import PackedMask
from mome_jax.inference.segmentation import (
  Segmentation,
  containers,
  decide,
  index_type,
  over_bytes,
)
from mome_jax.inference.stage_clock import Clock


class NonFiniteLogitsError(UserError):
  """The network returned infinity or NaN; a mask made from it would be wrong without a sign."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How scans are segmented, whatever the network and the classes.

  Attributes:
    spacing: (3,) mm of the grid the network works on.
    hu_windows: C pairs (low, high) of HU, one input channel each.
    tiling: how a scan is cut into windows.
    rules: of `postprocess.RULES`.
    tta: whether the logits are means with those of the mirror image.

  Raises:
    PostprocessError: if a rule is unknown.
  """

  spacing: tuple[float, ...]
  hu_windows: tuple[tuple[float, float], ...]
  tiling: sliding_window.Tiling
  rules: tuple[str, ...] = ()
  tta: bool = False

  def __post_init__(self):
    postprocess.check(self.rules)

  @classmethod
  def of_config(
    cls,
    config: Any,
    *,
    rules: Sequence[str] | None = None,
    overlap: float | None = None,
    tta: bool | None = None,
    devices: int = 1,
  ) -> 'Settings':
    """Those of a model.

    Args:
      config: `data.spacing`, `data.windows` and `evaluation` of it; see `configs/base.py`.
      rules: in place of `evaluation.postprocess`.
      overlap: in place of `evaluation.overlap`.
      tta: in place of `evaluation.tta`.
      devices: that share a batch of windows; its size is rounded up to a multiple.

    Raises:
      PostprocessError: if a rule is unknown.
    """
    evaluation = config.evaluation
    return cls(
      tuple(config.data.spacing),
      tuple(map(tuple, config.data.windows)),
      sliding_window.Tiling(
        tuple(evaluation.window),
        evaluation.overlap if overlap is None else overlap,
        -(-evaluation.batch_size // devices) * devices,
      ),
      tuple(evaluation.get('postprocess', ()) if rules is None else rules),
      evaluation.tta if tta is None else tta,
    )


class Segmenter:
  """Segments scans with fixed weights and a fixed list of prompts.

  Args:
    predict: (batch, *window, C) float32 -> (batch, *window, K) float32, or more classes, of which
      the first K count; or an iterator of parts of them.
    names: of the classes that compete for each voxel, in the order of the logits.
    settings: of the model.
    template: tells which classes contain which.
    free: names of what competes with nothing, whose logits follow those of the classes.

  Attributes:
    classes: all K names, in the order of the logits.
    predict: as given; what a `sliding_window.Watch` that only looks on calls.
  """

  def __init__(
    self,
    predict: Callable[[np.ndarray], Any],
    names: Sequence[str],
    settings: Settings,
    template: Template = TEMPLATE,
    *,
    free: Sequence[str] = (),
  ):
    self.names, self.free = tuple(names), tuple(free)
    self.classes = self.names + self.free
    self.settings = settings
    self.predict = predict
    self._template = template

  def network_input(self, image: np.ndarray, spacing: Sequence[float] | np.ndarray) -> np.ndarray:
    """(D, H, W) HU at `spacing` mm -> (D', H', W', C) float32 in [0, 1] on the network's grid."""
    coarse = resample.resample(image.astype(np.float32), spacing, self.settings.spacing, order=1)
    return hu_windows(coarse, self.settings.hu_windows)

  def __call__(
    self,
    image: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    on_slab: Callable[[slabs.Slab], object] = lambda slab: None,
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
      coarse = sliding_window.sliding_window(
        self.predict,
        channels,
        self.settings.tiling,
        classes=len(self.classes),
        clock=clock,
        watch=watch,
      )
      fine = slabs.resample_slabs(
        _checked(coarse), channels.shape[:3], self.settings.spacing, image.shape, spacing
      )
      segmentation = self._decide(fine, image.shape, on_slab)
    if not self.settings.rules:
      return segmentation
    with clock('postprocess'):
      midline = body.midline(image)
      return postprocess.apply(segmentation, self.settings.rules, spacing, midline)

  def _decide(
    self,
    parts: Iterable[slabs.Slab],
    shape: Sequence[int],
    on_slab: Callable[[slabs.Slab], object],
  ) -> Segmentation:
    """Logits on the scan's grid -> masks, slab by slab."""
    around = containers(self.names, self._template)
    over = np.empty((*shape, over_bytes(around)), np.uint8)
    winner = np.empty(shape, index_type(self.names))
    free = {name: PackedMask(shape) for name in self.free}
    for slab in parts:
      over[slab.planes], winner[slab.planes] = decide(
        slab.positive, slab.shape, self.names, self._template
      )
      for k, mask in enumerate(free.values(), len(self.names)):
        claim = slab.positive(k)
        if claim is not None:
          (x, y, z), logits = claim
          first = slab.planes.start
          mask.add((slice(first + x.start, first + x.stop), y, z), logits > 0)
      on_slab(slab)
    return Segmentation(self.names, winner, over, self._template, free)


def _checked(logits: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """The same slabs; NonFiniteLogitsError at the first that is not finite."""
  for slab in logits:
    if not all(np.isfinite(slab[..., k]).all() for k in range(slab.shape[-1])):
      raise NonFiniteLogitsError(
        "the network's output is not finite; use another checkpoint, or float32 "
        '(model.dtype in its config.json)'
      )
    yield slab
