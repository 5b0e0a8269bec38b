"""Which scale each class trusts where, and which experts of a bank it chooses."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

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

  Windows overlap and are blended as those of the segmentation. Maps of one window are held at full
  resolution, those of the whole scan in cells only.

  Args:
    predictor: the model.
    names: K class names.
    prompts: K texts for the text encoder.
    segmenter: for its grid, window and overlap.

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
    step = steps.make_routing_step(predictor.model, self._block)
    step = steps.jit(step, predictor.devices[0].platform)
    text = predictor.embed(prompts)  # with the empty prompts that fill the bucket
    self._step = lambda window, share: step(
      predictor.params, text, jnp.asarray(window[None]), share[None], predictor.context
    )

  def __call__(self, image: np.ndarray, spacing: Sequence[float]) -> RoutingMaps:
    """Explains one scan: (D, H, W) HU, canonical axis order, and mm along its axes."""
    channels = self._segmenter.network_input(image, spacing)
    shape, count, scales = channels.shape[:3], len(self.names), len(self.scale_labels)
    block, window = self._block, self._segmenter.window
    cells = tuple(-(-n // block) for n in shape)
    padded = [max(w, c * block) for w, c in zip(window, cells, strict=True)]
    channels = np.pad(channels, [*((0, p - n) for p, n in zip(padded, shape, strict=True)), (0, 0)])
    maps = np.zeros((count, scales + 1, *(p // block for p in padded)), np.uint8)
    sums = {
      'weight_sum': np.zeros((count, scales)), 'entropy_sum': np.zeros(count),
      'voxels': np.zeros(count),
    }  # fmt: skip
    # Means over the voxels of a cell that lie inside the scan.
    fill = _fill(shape, padded, block)
    held = np.zeros((count, scales + 1, window[0] // block, *maps.shape[3:]), np.float32)
    planes = _shares(channels, window, self._segmenter.overlap, block, shape)
    for first, following, views in planes:
      for region, share in views:
        did = {key: np.asarray(v) for key, v in self._step(channels[region], share).items()}
        place = (slice(None), *(slice(r.start // block, r.stop // block) for r in region[1:]))
        held[:, :-1, *place] += did['weights'][0, :count]
        held[:, -1, *place] += did['entropy'][0, :count]
        for key, total in sums.items():
          total += did[key][:count]
      done = (following - first) // block
      rows = slice(first // block, following // block)
      maps[:, :, rows] = np.rint(255 * np.clip(held[:, :, :done] / fill[rows], 0, 1))
      held[:, :, :-done], held[:, :, -done:] = held[:, :, done:].copy(), 0
    crop = (..., *(slice(n) for n in cells))
    step = np.array(self._segmenter.spacing, float)
    return RoutingMaps(
      self.names,
      self.scale_labels,
      maps[:, :-1][crop],
      maps[:, -1][crop],
      cell=step * block,
      origin=((block - 1) / 2 - (np.array(shape) - 1) / 2) * step,
      **sums,
    )


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


def _shares(
  channels: np.ndarray,
  window: Sequence[int],
  overlap: float,
  block: int,
  inside: Sequence[int],
) -> Iterator[tuple[int, int, Iterator[tuple[tuple[slice, ...], np.ndarray]]]]:
  """Windows that are not air, and how much of each voxel is theirs.

  Args:
    channels: (D, H, W, C) float32, at least as large as a window; 0 is air.
    window: voxels of a window, three numbers; multiples of `block`.
    overlap: between neighbouring windows; rounded so that they start at multiples of `block`.
    block: divides the shape.
    inside: shape of the part, from the first voxel on, that counts.

  Yields:
    For each plane of windows its first voxel along the first axis, that of the next plane or the
    end, and an iterator over its windows: the region, and (D, H, W) float32 shares. The shares of a
    voxel that counts add up to 1 over the windows that hold it.
  """
  shape = channels.shape[:3]
  starts = [
    [block * start for start in inference.window_starts(n // block, w // block, overlap)]
    for n, w in zip(shape, window, strict=True)
  ]
  weights = inference.gaussian_weights(window)
  region_of = lambda corner: tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
  regions = [region_of(corner) for corner in itertools.product(*starts)]
  regions = [region for region in regions if channels[region].any()]
  mass = np.zeros(shape, np.float32)
  for region in regions:
    mass[region] += weights
  counts = np.zeros(shape, bool)
  counts[tuple(slice(n) for n in inside)] = True
  for first, following in itertools.pairwise([*starts[0], shape[0]]):
    own = [region for region in regions if region[0].start == first]
    yield first, following, ((r, weights * counts[r] / mass[r]) for r in own)


def _fill(shape: Sequence[int], padded: Sequence[int], block: int) -> np.ndarray:
  """(d, h, w) float32: the part of each cell that lies inside a scan; 1 where none does."""
  fill = np.ones((), np.float32)
  for n, total in zip(shape, padded, strict=True):
    part = np.clip((n - np.arange(0, total, block)) / block, 0, 1).astype(np.float32)
    fill = fill[..., None] * np.where(part > 0, part, 1)
  return fill


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
  counts = np.array(
    [
      0 if box is None else np.count_nonzero(segmentation.winner[box] == k)
      for k, box in enumerate(segmentation.boxes.values(), 1)
    ]
  )
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
