"""Which scale each class trusts, and which experts it chooses: tables of shares, and maps."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from input_pipeline.ct import body
from mome_jax.inference.router_maps import RoutingMaps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures import ct_slice, layout

_DRAWN = 4  # classes


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
  """A table of shares.

  Attributes:
    names: K class names.
    labels: L labels of scales, finest first, such as 'scale 1 (4 mm)', or of experts.
    share: (K, L) mean share of each inside each class's mask; rows sum to 1, or are NaN for a class
      without voxels.
    entropy: (K,) fraction of log L, a last column, or None.

  Raises:
    ValueError: if `share` does not match the names and labels.
  """

  names: Sequence[str]
  labels: Sequence[str]
  share: np.ndarray
  entropy: np.ndarray | None = None

  def __post_init__(self):
    if self.share.shape != (len(self.names), len(self.labels)):
      raise ValueError(
        f'share {self.share.shape}: expected ({len(self.names)}, {len(self.labels)})'
      )

  @property
  def columns(self) -> list[str]:
    """The labels, and 'router entropy' where there is one."""
    return [*self.labels, *(() if self.entropy is None else ['router entropy'])]

  @property
  def cells(self) -> np.ndarray:
    """(K, columns)."""
    return self.share if self.entropy is None else np.column_stack([self.share, self.entropy])


@dataclasses.dataclass(frozen=True, eq=False)
class RouterSlice:
  """What the router did for one class in an axial slice.

  Attributes:
    name: of the class.
    image: (D, H) HU.
    weights: (L, D, H) float32, share of each scale in [0, 1], finest first.
    entropy: (D, H) float32, of the shares, as a fraction of log L.
    outline: (D, H) bool, the class.
    spacing: (2,) mm along x and y.
  """

  name: str
  image: np.ndarray
  weights: np.ndarray
  entropy: np.ndarray
  outline: np.ndarray
  spacing: Sequence[float] | np.ndarray

  @property
  def aspect(self) -> float:
    """Height by width, in mm."""
    width, height = np.multiply(self.image.shape, self.spacing)
    return float(height / width)

  @property
  def expected_scale(self) -> np.ndarray:
    """(D, H) mean index of the scale, in [0, L - 1]."""
    return np.tensordot(np.arange(len(self.weights)), self.weights, 1)


def largest_slices(
  maps: RoutingMaps,
  image: np.ndarray,
  spacing: Sequence[float] | np.ndarray,
  segmentation: Segmentation,
) -> list[RouterSlice]:
  """The four largest classes of a scan, largest first, each in its largest section.

  Args:
    maps: of the scan.
    image: (D, H, W) HU.
    spacing: (3,) mm.
    segmentation: of the scan.
  """
  counts = np.array(
    [
      0 if box is None else np.count_nonzero(segmentation.winner[box] == k)
      for k, box in enumerate(segmentation.boxes.values(), 1)
    ]
  )
  slices = []
  for k in np.argsort(-counts, kind='stable')[:_DRAWN]:
    name = segmentation.names[k]
    mask = segmentation.mask(name)
    if not counts[k] or name not in maps.names:
      continue
    z, row = int(mask.sum((0, 1)).argmax()), maps.names.index(name)
    across = body.box(body.is_dense(image[..., z]))
    weights = maps.plane(maps.weights[row], z, image.shape, spacing)
    entropy = maps.plane(maps.entropy[row], z, image.shape, spacing)
    slices.append(
      RouterSlice(
        name,
        image[..., z][across],
        weights[:, *across] / np.float32(255),
        entropy[across] / np.float32(255),
        mask[..., z][across],
        tuple(spacing[:2]),
      )
    )
  return slices


def routing(
  path: str | os.PathLike, shares: Shares, slices: Sequence[RouterSlice] = (), *, title: str
) -> None:
  """Draws which scale each class trusts: a table of shares, and maps for up to four classes.

  Args:
    path: PNG file to write.
    shares: the table.
    slices: to show the expected scale in, inside the body; the first four are drawn.
    title: one line above the picture.
  """
  slices = slices[:_DRAWN]
  left = 0.085 * max(map(len, shares.names)) + 0.3
  cell = max(0.6, 0.075 * max(map(len, shares.columns)) + 0.15)
  table_width, table_height = cell * len(shares.columns), 0.3 * len(shares.names)
  columns, rows = ((0, 0), (1, 1), (2, 1), (2, 2), (2, 2))[len(slices)]
  side = float(np.clip((table_height + 0.3) / max(rows, 1) - layout.CAPTION, 2.6, 3.6))
  deep = [
    side * max(part.aspect for part in slices[row * columns : (row + 1) * columns]) + layout.CAPTION
    for row in range(rows)
  ]
  maps_left = left + table_width + 0.35
  width = maps_left + (columns * (side + layout.GAP) + 1.5 if slices else 0.0)
  height = max(table_height + 0.3, sum(deep) + 0.1 * rows) + 0.1
  figure, top = layout.titled(title, max(width, 5.0), height)
  table_top = top - layout.CAPTION - table_height
  _share_table(layout.inches(figure, left, table_top, table_width, table_height), shares)
  for i, part in enumerate(slices):
    row, column = divmod(i, columns)
    y = top - row * 0.1 - sum(deep[:row]) - layout.CAPTION - side * part.aspect
    x = maps_left + column * (side + layout.GAP)
    axes = layout.inches(figure, x, y, side, side * part.aspect)
    layout.caption(axes, part.name)
    drawn = _scale_map(axes, part, part.expected_scale)
    drawn.set_clim(0, max(1, len(shares.labels) - 1))
  if slices:
    x = maps_left + columns * (side + layout.GAP)
    bar = min(2.4, side * slices[0].aspect)
    legend = layout.inches(figure, x, top - layout.CAPTION - bar, 0.16, bar)
    _scale_legend(figure, legend, drawn, shares.labels)
  layout.save(figure, path)


def scale_maps(
  path: str | os.PathLike, slices: Sequence[RouterSlice], labels: Sequence[str], *, title: str
) -> None:
  """Draws, one row a class, the share of each scale and the entropy of the shares in a slice.

  Args:
    path: PNG file to write.
    slices: one for each class.
    labels: of the L scales, finest first.
    title: one line above the picture.
  """
  side, rise = 2.1, layout.CAPTION + 0.1
  bar_left = layout.MARGIN + (len(labels) + 1) * (side + layout.GAP)
  total = sum(side * part.aspect + rise for part in slices)
  figure, top = layout.titled(title, bar_left + 0.7, total + 0.1)
  y = top
  for part in slices:
    y -= side * part.aspect + rise
    captions = [f'{part.name}, weight of {labels[0]}', *labels[1:], 'router entropy']
    for column, values in enumerate([*part.weights, part.entropy]):
      x = layout.MARGIN + column * (side + layout.GAP)
      axes = layout.inches(figure, x, y, side, side * part.aspect)
      layout.caption(axes, captions[column])
      drawn = _scale_map(axes, part, values)
      drawn.set_clim(0, 1)
  if slices:
    height = side * slices[0].aspect
    bar = layout.inches(figure, bar_left, top - rise - height, 0.12, height)
    _scale_legend(figure, bar, drawn, ['0 %', '100 %'])
    bar.invert_yaxis()
  layout.save(figure, path)


def experts(folder: os.PathLike, row: Mapping[str, list], names: Sequence[str]) -> None:
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
    routing(
      epath.Path(folder) / f'experts_{scale}.png',
      Shares(names, [str(expert) for expert in range(share.shape[1])], share),
      title=f'Experts of scale {scale} chosen by the voxels of each class in training',
    )


def _scale_map(axes: Axes, part: RouterSlice, values: np.ndarray) -> AxesImage:
  """(D, H) numbers over the anatomy of a slice, inside the body only."""
  ct_slice.anatomy(axes, part.image[::-1].T, part.spacing)
  inside = np.where(body.patient(part.image), values, np.nan)[::-1].T
  drawn = ct_slice.show(
    axes, inside, part.spacing, cmap='viridis', alpha=0.55, interpolation='nearest'
  )
  ct_slice.contour(axes, part.outline[::-1].T, part.spacing, 'white', linewidths=1.3)
  ct_slice.letters(axes, 'RLAP')
  return drawn


def _scale_legend(figure: Figure, axes: Axes, drawn: AxesImage, labels: Sequence[str]) -> None:
  colorbar = figure.colorbar(drawn, cax=axes, ticks=range(len(labels)))
  if colorbar.solids is not None:
    colorbar.solids.set_alpha(1.0)
  axes.set_yticklabels(labels, fontsize=8, color=layout.INK)
  axes.invert_yaxis()


def _share_table(axes: Axes, shares: Shares) -> None:
  axes.imshow(shares.cells, cmap='Blues', vmin=0, vmax=1, aspect='auto')
  for (row, column), value in np.ndenumerate(shares.cells):
    text = '–' if math.isnan(value) else f'{100 * value:.0f} %'
    ink = 'white' if value > 0.6 else layout.INK
    axes.text(column, row, text, ha='center', va='center', fontsize=8, color=ink)
  axes.set_yticks(range(len(shares.names)), shares.names, fontsize=9, color=layout.INK)
  axes.set_xticks(range(len(shares.columns)), shares.columns, fontsize=8, color=layout.INK)
  axes.xaxis.tick_top()
  axes.tick_params(length=0)
  axes.set_xticks(np.arange(0.5, len(shares.columns) - 1), minor=True)
  axes.set_yticks(np.arange(0.5, len(shares.names) - 1), minor=True)
  axes.grid(which='minor', color='white', linewidth=1.5)
  axes.tick_params(which='minor', length=0)
  axes.spines[:].set_visible(False)
