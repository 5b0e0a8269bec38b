"""Which scale each class trusts where, and which experts of a bank it chooses."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from mome_jax.inference import sliding_window
from mome_jax.inference.loaded_model import Predictor
from mome_jax.inference.model import Model
from mome_jax.inference.segmenter import Segmenter

_CELL_MM = 6.0  # maps of all classes and scales are kept in cells of about this size
_ALIKE = 1.5  # voxels whose sides differ by no more than this factor are told by their first one


class _Means:
  """Means inside masks, from sums over their voxels."""

  weight_sum: np.ndarray
  entropy_sum: np.ndarray
  voxels: np.ndarray

  @property
  def share(self) -> np.ndarray:
    """(K, L) mean share of each scale inside each class; NaN for a class without voxels."""
    return _mean(self.weight_sum, self.voxels[:, None])

  @property
  def mean_entropy(self) -> np.ndarray:
    """(K,) mean entropy inside each class, as a fraction of log L; NaN without voxels."""
    return _mean(self.entropy_sum, self.voxels)


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingMaps(_Means):
  """What the router did in one scan, in coarse cells, and exact means inside the predicted masks.

  Attributes:
    names: K class names.
    scale_labels: L labels, finest first, such as '4 mm'; see `scale_label`.
    weights: (K, L, d, h, w) uint8, mean share of each scale in each cell times 255; 0 for all
      scales in cells of air, where no window looked.
    entropy: (K, d, h, w) uint8, mean entropy of the shares as a fraction of log L, times 255.
    cell: (3,) mm.
    origin: (3,) mm, centre of the first cell from the centre of the scan.
    weight_sum: (K, L) float64, sums over the voxels of each class's mask.
    entropy_sum: (K,) float64, likewise.
    voxels: (K,) float64, on the network's grid.
  """

  names: tuple[str, ...]
  scale_labels: tuple[str, ...]
  weights: np.ndarray
  entropy: np.ndarray
  cell: np.ndarray
  origin: np.ndarray
  weight_sum: np.ndarray
  entropy_sum: np.ndarray
  voxels: np.ndarray

  def plane(
    self, maps: np.ndarray, z: int, shape: Sequence[int], spacing: Sequence[float] | np.ndarray
  ) -> np.ndarray:
    """An axial plane of some maps on the grid of the scan, nearest cells.

    Args:
      maps: (..., d, h, w), of the cells.
      z: slice of the scan.
      shape: (D, H, W) of the scan.
      spacing: (3,) mm of the scan.

    Returns:
      (..., D, H), the dtype of `maps`.
    """
    index = []
    for axis, n in enumerate(shape):
      voxels = np.arange(n) if axis < 2 else np.array([z])
      mm = (voxels - (n - 1) / 2) * spacing[axis]
      nearest = np.rint((mm - self.origin[axis]) / self.cell[axis]).astype(int)
      index.append(np.clip(nearest, 0, maps.shape[maps.ndim - 3 + axis] - 1))
    x, y, (z_cell,) = index
    return maps[..., z_cell][..., x[:, None], y[None, :]]


def scale_label(spacing: Sequence[float], scale: int) -> str:
  """How large the voxels of a scale are: '4 mm', or '0.8-5 mm' where their sides differ much.

  Args:
    spacing: (3,) mm of the network's grid.
    scale: how often its resolution is halved.
  """
  sides = [mm * 2**scale for mm in spacing]
  low, high = min(sides), max(sides)
  return f'{sides[0]:g} mm' if high <= _ALIKE * low else f'{low:g}-{high:g} mm'


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
  with np.errstate(invalid='ignore', divide='ignore'):
    return total / count


class Explainer:
  """Asks the router of a model what it does while a scan is segmented.

  Args:
    predictor: the model.
    names: K class names.
    prompts: K texts for the text encoder.
    segmenter: of the same names and prompts.

  Raises:
    ValueError: if the model has a single scale, and so no router.
  """

  def __init__(
    self, predictor: Predictor, names: Sequence[str], prompts: Sequence[str], segmenter: Segmenter
  ):
    scales = predictor.model.active_scales
    if len(scales) < 2:
      raise ValueError(f'{predictor.path}: this model mixes no scales; there is no routing to show')
    self.names = tuple(names)
    self.spacing = segmenter.settings.spacing
    self.scale_labels = tuple(scale_label(self.spacing, scale) for scale in scales)
    # (windows, counted, placement) -> of each bucket of prompts, what the routing step returns.
    self.ask = functools.partial(predictor.ask, predictor.routing_step, predictor.buckets(prompts))

  def watch(self) -> 'RoutingWatch':
    """For one scan: `segmenter(image, spacing, watch=watch)`, then `watch.maps()`."""
    return RoutingWatch(self)


class RoutingWatch:
  """Makes the routing maps of a scan from the windows of its segmentation, in the same pass.

  Windows overlap and are blended as their logits are, so that a voxel's shares are those which made
  its logit; inside a class is where a window's own logit is above 0. Maps of one window are held at
  full resolution, those of the whole scan in cells only.

  Args:
    explainer: of the segmenter's model.
  """

  def __init__(self, explainer: Explainer):
    self._explainer = explainer
    self._block = cell_voxels(explainer.spacing)
    # (K, L + 2), of `make_routing_step`.
    self._sums = np.zeros((len(explainer.names), len(explainer.scale_labels) + 2))
    self._row = 0  # the first of those that are held

  def begin(self, windows: sliding_window.Windows) -> None:
    """See `sliding_window.Watch`."""
    self._windows = windows
    self.weight_sums = sliding_window.gaussian_weights(windows.size)
    self._mass = np.zeros(windows.padded, np.float32)
    for corners in windows.planes.values():
      for corner in corners:
        self._mass[windows.region(corner)] += self.weight_sums
    self._inside = np.zeros(windows.padded, bool)
    self._inside[windows.scan] = True
    block, kinds = self._block, (len(self._explainer.names), len(self._explainer.scale_labels) + 1)
    self._reach = [-(-w // block) + 1 for w in windows.size]  # cells that a window may touch
    cells = [-(-n // block) for n in windows.shape]
    self._maps = np.zeros((*kinds, *cells), np.uint8)
    self._fill = _fill(windows.shape, block)
    beyond = [n + m for n, m in zip(cells, self._reach, strict=True)]
    self._held = np.zeros((*kinds, self._reach[0], *beyond[1:]), np.float32)

  def predict(
    self, batch: np.ndarray, corners: Sequence[sliding_window.Corner]
  ) -> Iterator[jax.Array]:
    """See `sliding_window.Watch`."""
    counted = np.zeros(batch.shape[:-1], np.float32)
    placement = [
      np.zeros((len(batch), m, w), np.float32)
      for m, w in zip(self._reach, self._windows.size, strict=True)
    ]
    for row, corner in enumerate(corners):
      region = self._windows.region(corner)
      counted[row] = self.weight_sums * self._inside[region] / self._mass[region]
      cell = self._cell(corner)
      for axis, place in enumerate(placement):
        voxels = np.arange(place.shape[-1]) + corner[axis] - self._windows.before[axis]
        place[row] = voxels // self._block == cell[axis] + np.arange(place.shape[1])[:, None]
    parts = self._explainer.ask(batch, counted, placement)

    def logits() -> Iterator[jax.Array]:
      first = 0
      for part, routed in parts:
        yield part
        self._collect(corners, routed, first)
        first += part.shape[1]

    return logits()

  def maps(self) -> RoutingMaps:
    """What the router did, once the scan is segmented."""
    self._finish(self._row + len(self._held[0, 0]))
    spacing, shape = np.array(self._explainer.spacing, float), np.array(self._windows.shape)
    return RoutingMaps(
      self._explainer.names,
      self._explainer.scale_labels,
      self._maps[:, :-1],
      self._maps[:, -1],
      cell=spacing * self._block,
      origin=((self._block - 1) / 2 - (shape - 1) / 2) * spacing,
      weight_sum=self._sums[:, :-2],
      entropy_sum=self._sums[:, -2],
      voxels=self._sums[:, -1],
    )

  def _cell(self, corner: Sequence[int]) -> list[int]:
    """The first cell of the scan that a window touches."""
    before = self._windows.before
    return [max(0, c - b) // self._block for c, b in zip(corner, before, strict=True)]

  def _collect(
    self, corners: Sequence[sliding_window.Corner], routed: Mapping[str, jax.Array], first: int
  ) -> None:
    """Adds what the router did in a batch for a bucket of prompts, from number `first` on."""
    names = slice(first, min(first + len(routed['sums']), len(self._sums)))
    count = names.stop - first
    self._sums[names] += np.asarray(routed['sums'], np.float64)[:count]
    maps = np.asarray(routed['maps'])[:count]
    for row, corner in enumerate(corners):
      x, *rest = self._cell(corner)
      self._finish(x)
      place = tuple(slice(c, c + m) for c, m in zip(rest, self._reach[1:], strict=True))
      self._held[names, :, :, *place] += maps[:, row]

  def _finish(self, first: int) -> None:
    """Writes the rows of cells before `first`, which no later window touches."""
    done = first - self._row
    if not done:
      return
    rows = slice(self._row, min(first, self._row + self._held.shape[2], len(self._fill)))
    height, width = self._fill.shape[1:]
    mean = self._held[:, :, : rows.stop - rows.start, :height, :width] / self._fill[rows]
    self._maps[:, :, rows] = np.rint(255 * np.clip(mean, 0, 1))
    ahead = self._held[:, :, done:].copy()
    self._held[:] = 0
    self._held[:, :, : ahead.shape[2]] = ahead
    self._row = first


def make_explainer(
  model: Model, names: Sequence[str], prompts: Sequence[str], segmenter: Segmenter
) -> Explainer | None:
  """An `Explainer`, or None where no one router makes the logits.

  That is a model that mixes no scales, several models, and the mean with a mirror image.
  """
  (first, *others) = model.members
  if others or segmenter.settings.tta or len(first.model.active_scales) < 2:
    return None
  return Explainer(first, names, prompts, segmenter)


def cell_voxels(spacing: Sequence[float] | np.ndarray) -> int:
  """Voxels along a side of a cell: a power of two, about 6 mm."""
  mm = float(np.prod(spacing)) ** (1 / 3)
  return 2 ** max(0, round(float(np.log2(_CELL_MM / mm))))


def _fill(shape: Sequence[int], block: int) -> np.ndarray:
  """(d, h, w) float32: voxels of each cell that lie inside a scan."""
  fill = np.ones((), np.float32)
  for n in shape:
    fill = fill[..., None] * np.clip(n - np.arange(0, n, block), 0, block).astype(np.float32)
  return fill


class RoutingTotals(_Means):
  """Means of the router's shares inside the predicted masks of several scans.

  Args:
    explainer: of their maps.

  Attributes:
    cases: scans so far.
  """

  def __init__(self, explainer: Explainer):
    self.cases = 0
    self.names, self.scale_labels = explainer.names, explainer.scale_labels
    count, scales = len(self.names), len(self.scale_labels)
    self.weight_sum = np.zeros((count, scales))
    self.entropy_sum, self.voxels = np.zeros(count), np.zeros(count)

  def add(self, maps: RoutingMaps) -> None:
    """Adds a scan."""
    self.weight_sum += maps.weight_sum
    self.entropy_sum += maps.entropy_sum
    self.voxels += maps.voxels
    self.cases += 1
