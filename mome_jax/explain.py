"""Which scale each class trusts where, and which experts of a bank it chooses."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mome_jax import inference, report, steps
from mome_jax.predictor import Predictor
from mome_jax.segment import Segmentation, Segmenter

_CELL_MM = 6.0  # maps of all classes and scales are kept in cells of about this size
_DRAWN = 4  # classes


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingMaps:
  """What the router did in one scan, in coarse cells, and exact means inside the predicted masks.

  Attributes:
    names: K class names.
    scale_labels: L labels, finest first, such as '4 mm'.
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

  @property
  def share(self) -> np.ndarray:
    """(K, L) mean share of each scale inside each class; NaN for a class without voxels."""
    return _mean(self.weight_sum, self.voxels[:, None])

  @property
  def mean_entropy(self) -> np.ndarray:
    """(K,) mean entropy inside each class, as a fraction of log L; NaN without voxels."""
    return _mean(self.entropy_sum, self.voxels)

  def plane(
    self, maps: np.ndarray, z: int, shape: Sequence[int], spacing: Sequence[float]
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


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
  with np.errstate(invalid='ignore', divide='ignore'):
    return total / count


class Explainer:
  """Asks the router of a model about scans.

  Windows do not overlap here. Never more than the maps of one window are held at full resolution,
  and those on the device only.

  Args:
    predictor: the model.
    names: K class names.
    prompts: K texts for the text encoder.
    segmenter: for its grid and window.

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
    spacing = segmenter.spacing
    self.scale_labels = tuple(f'{spacing[0] * 2**scale:g} mm' for scale in scales)
    self._segmenter = segmenter
    self._block = cell_voxels(spacing, segmenter.window)
    step = jax.jit(steps.make_routing_step(predictor.model, self._block))
    text = predictor.embed(prompts)  # with the empty prompts that fill the bucket
    self._step = lambda window, counted: step(
      predictor.params, text, jnp.asarray(window[None]), counted[None], predictor.context
    )

  def __call__(self, image: np.ndarray, spacing: Sequence[float]) -> RoutingMaps:
    """Explains one scan: (D, H, W) HU, canonical axis order, and mm along its axes."""
    channels = self._segmenter.network_input(image, spacing)
    shape, count, scales = channels.shape[:3], len(self.names), len(self.scale_labels)
    block, window = self._block, self._segmenter.window
    cells = tuple(-(-n // block) for n in shape)
    padded = [max(w, c * block) for w, c in zip(window, cells, strict=True)]
    channels = np.pad(channels, [*((0, p - n) for p, n in zip(padded, shape, strict=True)), (0, 0)])
    weights = np.zeros((count, scales, *(p // block for p in padded)), np.uint8)
    entropy = np.zeros((count, *weights.shape[2:]), np.uint8)
    sums = {'weight_sum': 0.0, 'entropy_sum': 0.0, 'voxels': 0.0}
    for region, counted in _tiles(padded, window, shape):
      view = channels[region]
      if not view.any():
        continue
      did = {key: np.asarray(value)[:count] for key, value in self._batch(view, counted).items()}
      place = tuple(slice(r.start // block, r.stop // block) for r in region)
      weights[(..., *place)] = np.rint(255 * did['weights'])
      entropy[(..., *place)] = np.rint(255 * np.clip(did['entropy'], 0, 1))
      sums = {key: sums[key] + did[key].astype(np.float64) for key in sums}
    crop = (..., *(slice(n) for n in cells))
    step = np.array(self._segmenter.spacing, float)
    return RoutingMaps(
      self.names,
      self.scale_labels,
      weights[crop],
      entropy[crop],
      cell=step * block,
      origin=((block - 1) / 2 - (np.array(shape) - 1) / 2) * step,
      weight_sum=sums['weight_sum'] + np.zeros((count, scales)),
      entropy_sum=sums['entropy_sum'] + np.zeros(count),
      voxels=sums['voxels'] + np.zeros(count),
    )

  def _batch(self, view: np.ndarray, counted: np.ndarray) -> dict[str, jax.Array]:
    """The step on one window, class axis first everywhere."""
    did = self._step(view, counted)
    return did | {'weights': did['weights'][0], 'entropy': did['entropy'][0]}


def make_explainer(
  predictor: Predictor, names: Sequence[str], prompts: Sequence[str], segmenter: Segmenter
) -> Explainer | None:
  """An `Explainer`, or None for a model that mixes no scales."""
  if len(predictor.model.active_scales) < 2:
    return None
  return Explainer(predictor, names, prompts, segmenter)


def cell_voxels(spacing: Sequence[float], window: Sequence[int]) -> int:
  """Voxels along a side of a cell: a power of two that divides the window, about 6 mm."""
  mm = float(np.prod(spacing)) ** (1 / 3)
  block = 2 ** max(0, round(float(np.log2(_CELL_MM / mm))))
  while any(w % block for w in window):
    block //= 2
  return block


def _tiles(
  shape: Sequence[int], window: Sequence[int], inside: Sequence[int]
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
  """Windows that cover a grid, and which of their voxels no earlier one had.

  Args:
    shape: of the grid; at least the window.
    window: (D, H, W).
    inside: shape of the part, from the first voxel on, that counts.

  Yields:
    The region of a window, and (D, H, W) bool. Each voxel inside is True exactly once.
  """
  axes = []
  for size, width, limit in zip(shape, window, inside, strict=True):
    parts, done = [], 0
    for start in inference.window_starts(size, width, 0.0):
      voxels = np.arange(start, start + width)
      parts.append((slice(start, start + width), (voxels >= done) & (voxels < limit)))
      done = start + width
    axes.append(parts)
  for x, fresh_x in axes[0]:
    for y, fresh_y in axes[1]:
      for z, fresh_z in axes[2]:
        yield (x, y, z), fresh_x[:, None, None] & fresh_y[:, None] & fresh_z


class Routing:
  """Collects what the router did in some scans, for one table and a picture of the first scan."""

  def __init__(self, explainer: Explainer):
    self.cases = 0
    self._explainer = explainer
    self._weight = self._voxels = self._entropy = 0.0
    self._planes = None

  def add(
    self, image: np.ndarray, spacing: Sequence[float], segmentation: Segmentation
  ) -> RoutingMaps:
    """Adds a scan: (D, H, W) HU, mm, and what was segmented in it."""
    maps = self._explainer(image, spacing)
    self._voxels += maps.voxels
    self._weight += maps.weight_sum
    self._entropy += maps.entropy_sum
    if self.cases == 0:
      self._planes = largest_planes(maps, image, spacing, segmentation)
    self.cases += 1
    return maps

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture: a table of mean weights, and maps of the four largest classes."""
    explainer, planes = self._explainer, self._planes
    report.routing(
      path,
      share=_mean(self._weight, self._voxels[:, None]),
      entropy=_mean(self._entropy, self._voxels),
      names=explainer.names,
      scale_labels=explainer.scale_labels,
      image_slice=planes.images,
      maps={
        name: np.tensordot(np.arange(len(weights)), weights, 1)
        for name, weights in planes.weights.items()
      },
      outlines=planes.outlines,
      spacing_2d=planes.spacing,
      title=f'Weight of each scale inside the predicted masks of {self.cases} scans',
    )


@dataclasses.dataclass(frozen=True)
class Planes:
  """Axial slices to draw, each through the largest section of its class; keys are class names.

  Attributes:
    images: (D, H) HU.
    weights: (L, D, H) float32, share of each scale.
    entropy: (D, H) float32, as a fraction of log L.
    outlines: (D, H) bool, the class.
    spacing: (2,) mm.
  """

  images: Mapping[str, np.ndarray]
  weights: Mapping[str, np.ndarray]
  entropy: Mapping[str, np.ndarray]
  outlines: Mapping[str, np.ndarray]
  spacing: tuple[float, float]


def largest_planes(
  maps: RoutingMaps, image: np.ndarray, spacing: Sequence[float], segmentation: Segmentation
) -> Planes:
  """Slices of the four largest classes of a scan, largest first.

  Args:
    maps: of the scan.
    image: (D, H, W) HU.
    spacing: (3,) mm.
    segmentation: of the scan.
  """
  planes = Planes({}, {}, {}, {}, tuple(spacing[:2]))
  counts = np.bincount(segmentation.winner.ravel(), minlength=len(maps.names) + 1)[1:]
  for k in np.argsort(-counts, kind='stable')[:_DRAWN]:
    name = segmentation.names[k]
    mask = segmentation.mask(name)
    if not counts[k] or name not in maps.names:
      continue
    z, row = int(mask.sum((0, 1)).argmax()), maps.names.index(name)
    box = _body(image[..., z] > -500)
    where = (z, image.shape, spacing)
    planes.images[name] = image[..., z][box]
    planes.weights[name] = maps.plane(maps.weights[row], *where)[(..., *box)] / np.float32(255)
    planes.entropy[name] = maps.plane(maps.entropy[row], *where)[box] / np.float32(255)
    planes.outlines[name] = mask[..., z][box]
  return planes


def _body(dense: np.ndarray) -> tuple[slice, slice]:
  """The box of what is dense in a slice; all of it where nothing is."""
  if not dense.any():
    return slice(None), slice(None)
  return tuple(
    slice(int(hit.argmax()), len(hit) - int(hit[::-1].argmax()))
    for hit in (dense.any(1), dense.any(0))
  )


def draw_case(
  path: str | os.PathLike,
  maps: RoutingMaps,
  image: np.ndarray,
  spacing: Sequence[float],
  segmentation: Segmentation,
  *,
  title: str,
) -> None:
  """Draws one scan: for its largest classes, the share of each scale and the entropy."""
  planes = largest_planes(maps, image, spacing, segmentation)
  report.expert_maps(
    path,
    images=planes.images,
    weights=planes.weights,
    entropy=planes.entropy,
    outlines=planes.outlines,
    scale_labels=maps.scale_labels,
    spacing_2d=planes.spacing,
    title=title,
  )


def draw_experts(folder: pathlib.Path, row: Mapping[str, list], names: Sequence[str]) -> None:
  """Draws which expert of each bank the voxels of each class chose: `experts_SCALE.png`.

  Args:
    folder: of the pictures.
    row: a line of `experts.jsonl`; `moe_SCALE/classes` is (E, K), choices by voxels of each class.
    names: K class names.
  """
  for key, value in row.items():
    if not key.endswith('/classes'):
      continue
    scale = key.removesuffix('/classes').removeprefix('moe_')
    choices = np.asarray(value).T
    with np.errstate(invalid='ignore'):
      share = choices / choices.sum(1, keepdims=True)
    report.routing(
      folder / f'experts_{scale}.png',
      share=share,
      names=names,
      scale_labels=[str(expert) for expert in range(share.shape[1])],
      title=f'Experts of scale {scale} chosen by the voxels of each class in training',
    )
