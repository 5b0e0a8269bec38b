"""From a scan to class masks on its own grid: the one path that evaluation and prediction share."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import body, resample
from input_pipeline.ct.hu_windows import hu_windows
from mome_jax.inference import on_device, postprocess, slabs, sliding_window
from mome_jax.inference.packed_mask import Box, PackedMask
from mome_jax.inference.segmentation import (
  Segmentation,
  containers,
  decide,
  index_type,
  over_bytes,
)
from mome_jax.inference.sliding_window import NonFiniteLogitsError
from mome_jax.inference.stage_clock import Clock
from mome_jax.runtime import compilation

# Planes, which containers are over their threshold in them, who owns each voxel, and of each name
# that competes with nothing a box and the mask inside it.
_Decided = tuple[slabs.Planes, np.ndarray, np.ndarray, Sequence[tuple[Box, np.ndarray] | None]]


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
    windows: int = 1,
  ) -> 'Settings':
    """Those of a model.

    Args:
      config: `data.spacing`, `data.windows` and `evaluation` of it; see `configs/base.py`.
      rules: in place of `evaluation.postprocess`.
      overlap: in place of `evaluation.overlap`.
      tta: in place of `evaluation.tta`.
      devices: that share a batch of windows; its size is rounded up to a multiple.
      windows: of a batch, where `evaluation.batch_size` is 0.

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
        -(-(evaluation.batch_size or windows) // devices) * devices,
      ),
      tuple(evaluation.get('postprocess', ()) if rules is None else rules),
      evaluation.tta if tta is None else tta,
    )


class Segmenter:
  """Segments scans with fixed weights and a fixed list of prompts.

  Args:
    predict: (batch, *window, C) float32 -> (batch, K, *window) float32, or more classes, of which
      the first K count; or an iterator of parts of them.
    names: of the classes that compete for each voxel, in the order of the logits.
    settings: of the model.
    template: tells which classes contain which.
    free: names of what competes with nothing, whose logits follow those of the classes.
    on_device: whether what becomes of the logits is decided where they are, see `on_device`.

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
    on_device: bool = False,
  ):
    self.names, self.free = tuple(names), tuple(free)
    self.classes = self.names + self.free
    self.settings = settings
    self.predict = predict
    self._template = template
    self._on_device = on_device

  def network_input(self, image: np.ndarray, spacing: Sequence[float] | np.ndarray) -> np.ndarray:
    """(D, H, W) HU at `spacing` mm -> (D', H', W', C) float32 in [0, 1] on the network's grid."""
    coarse = resample.resample(image, spacing, self.settings.spacing, order=1)
    return hu_windows(coarse, self.settings.hu_windows)

  def compile(self) -> None:
    """Compiles what `predict` runs, or reads it from the cache, for a batch of windows of air."""
    tiling = self.settings.tiling
    channels = len(self.settings.hu_windows)
    air = np.zeros((tiling.batch_size, *tiling.window, channels), np.float32)
    parts = self.predict(air)
    jax.block_until_ready(next(parts) if isinstance(parts, Iterator) else parts)

  def __call__(
    self,
    image: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    on_slab: Callable[[slabs.Planes], object] = lambda slab: None,
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
      clock: counts the stages 'resample', 'network', 'blend' and 'postprocess', and what
        `sliding_window` and `on_device.Decider` count; and 'compilations', also those of other
        threads meanwhile.
      watch: of `router_maps.Explainer.watch`, for the routing maps of the same pass.

    Returns:
      Masks on the grid of `image`.

    Raises:
      NonFiniteLogitsError: if the network overflowed.
    """
    clock = clock or Clock()
    compiled = compilation.programs()
    with clock('resample'):
      channels = self.network_input(image, spacing)
    with clock('blend'):
      if self._on_device:
        decided = self._decided_on_device(channels, image.shape, spacing, clock, watch)
      else:
        decided = self._decided_on_host(channels, image.shape, spacing, clock, watch)
      segmentation = self._collect(decided, image.shape, on_slab)
    clock.count('compilations', compilation.programs() - compiled)
    if not self.settings.rules:
      return segmentation
    with clock('postprocess'):
      midline = body.midline(image)
      return postprocess.apply(segmentation, self.settings.rules, spacing, midline)

  def _decided_on_host(
    self,
    channels: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float] | np.ndarray,
    clock: Clock,
    watch: sliding_window.Watch | None,
  ) -> Iterator[_Decided]:
    """Logits on the network's grid -> decided planes of the scan's, on the host."""
    coarse = sliding_window.sliding_window(
      self.predict,
      channels,
      self.settings.tiling,
      classes=len(self.classes),
      clock=clock,
      watch=watch,
    )
    fine = slabs.resample_slabs(
      _checked(coarse), channels.shape[:3], self.settings.spacing, shape, spacing
    )
    for slab in fine:
      over, winner = decide(slab.positive, slab.shape, self.names, self._template)
      free = []
      for k in range(len(self.names), len(self.classes)):
        claim = slab.positive(k)
        free.append(None if claim is None else (claim[0], claim[1] > 0))
      yield slab, over, winner, free

  def _decided_on_device(
    self,
    channels: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float] | np.ndarray,
    clock: Clock,
    watch: sliding_window.Watch | None,
  ) -> Iterator[_Decided]:
    """The same on the device."""
    image, windows = sliding_window.tile(channels, self.settings.tiling)
    grids = on_device.Grids(windows, self.settings.spacing, shape, spacing)
    decided = on_device.Classes(self.names, len(self.free), self._template)
    blend = on_device.Decider(grids, decided, clock)
    ask = sliding_window.asking(self.predict, windows, watch)
    size, count = self.settings.tiling.batch_size, len(self.classes)
    for part in sliding_window.visit(ask, image, windows, size, blend, classes=count, clock=clock):
      whole = tuple(slice(0, n) for n in part.shape)
      yield part, part.over, part.winner, [(whole, mask) for mask in part.free]

  def _collect(
    self,
    parts: Iterable[_Decided],
    shape: Sequence[int],
    on_slab: Callable[[slabs.Planes], object],
  ) -> Segmentation:
    """Decided planes -> masks of the whole scan."""
    around = containers(self.names, self._template)
    over = np.empty((*shape, over_bytes(around)), np.uint8)
    winner = np.empty(shape, index_type(self.names))
    free = {name: PackedMask(shape) for name in self.free}
    for slab, over[slab.planes], winner[slab.planes], claims in parts:
      for mask, claim in zip(free.values(), claims, strict=True):
        if claim is not None:
          (x, y, z), values = claim
          first = slab.planes.start
          mask.add((slice(first + x.start, first + x.stop), y, z), values)
      on_slab(slab)
    return Segmentation(self.names, winner, over, self._template, free)


def _checked(logits: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """The same slabs; NonFiniteLogitsError at the first that is not finite."""
  for slab in logits:
    if not all(np.isfinite(maps).all() for maps in slab):
      raise NonFiniteLogitsError
    yield slab
