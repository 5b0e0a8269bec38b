"""Pictures for people: overlays on CT, routing maps. PNG files, no display needed.

Arrays are canonical (x grows to the patient's right, y to anterior, z to superior) and are shown as
radiologists read them: the patient's right on the left, anterior or superior up.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import matplotlib.patheffects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from input_pipeline.ct import body
from mome_jax.pictures import layout
from mome_jax.pictures.colours import palette

SOFT_TISSUE = (-160.0, 240.0)  # HU
_PLANES = (('Axial', 2, 'RLAP'), ('Coronal', 1, 'RLSI'), ('Sagittal', 0, 'APSI'))
THIN = 6  # times thinner than long and wide: from the side, a scan is a strip
_GAP, _CAPTION, _LEGEND_ROW = 0.15, 0.25, 0.205  # inches
_MARGIN_MM = 8  # around the body
_OUTLINE = [matplotlib.patheffects.withStroke(linewidth=1.6, foreground='black')]
_DASHES = (0, (3.5, 2))


def overlay(
  path: str | os.PathLike,
  image: np.ndarray,
  masks: Mapping[str, np.ndarray],
  spacing: Sequence[float],
  *,
  truths: Mapping[str, np.ndarray] | None = None,
  labelled: np.ndarray | None = None,
  title: str,
  colours: Mapping[str, Sequence[float]] | None = None,
  window: tuple[float, float] = SOFT_TISSUE,
) -> None:
  """Draws masks over a scan in three planes, each through its slice with most labelled voxels.

  Of few slices, which from the side are strips, up to three are drawn instead. Predictions
  are filled with a solid outline, truths are dashed. The panels share one scale.

  Args:
    path: PNG file to write.
    image: (D, H, W) CT in HU, canonical.
    masks: class name -> (D, H, W) bool, or what has a shape and is sliced like an array.
    spacing: (3,) mm.
    labelled: (D, H, W) bool, union of all masks; made from them where it is None.
    truths: class name -> (D, H, W) bool, or None where there is no truth.
    title: one line above the panels; wrapped where long.
    colours: class name -> RGB in [0, 1]; by default the `palette` of these classes.
    window: (low, high) HU shown as black and white.

  Raises:
    ValueError: if a mask's shape is not the image's.
  """
  groups = masks, truths or {}
  colours = colours or palette([name for group in groups for name in group])
  for name, mask in [item for group in groups for item in group.items()]:
    if mask.shape != image.shape:
      raise ValueError(f'{name}: mask {mask.shape} is not on the grid of the image {image.shape}')
  if labelled is None:
    labelled = np.zeros(image.shape, bool)
    for mask in [mask for group in groups for mask in group.values()]:
      labelled |= mask[...].astype(bool)
  margin = [round(_MARGIN_MM / mm) for mm in spacing]
  box = body.box(body.is_dense(image) | labelled, margin)
  labelled, shown = labelled[box], image[box]
  planes = _planes(labelled, spacing)
  panels, width, height = _arrange(shown.shape, spacing, planes)
  # Slices first: only classes that some panel shows enter the legend.
  slices = [
    [
      {n: _view(mask, plane.axis, plane.index, box) for n, mask in group.items()}
      for group in groups
    ]
    for plane in planes
  ]
  names = [n for n in dict.fromkeys(x for g in groups for x in g) if _visible(n, slices)]
  handles = _legend_handles(names, colours, bool(truths))
  columns, rows = _legend_grid(handles, width)
  legend_height = _LEGEND_ROW * rows + 0.2
  figure, top = layout.titled(title, width, height + _CAPTION + legend_height)
  for i, (plane, panel) in enumerate(zip(planes, panels, strict=True)):
    x, y, panel_width, panel_height = panel
    axes = layout.inches(figure, x, top - _CAPTION - y - panel_height, panel_width, panel_height)
    step = [mm for a, mm in enumerate(spacing) if a != plane.axis]
    _anatomy(axes, _view(shown, plane.axis, plane.index), step, window)
    _draw_masks(axes, *slices[i], colours, step)
    _letters(axes, plane.letters)
    if i == 0:
      _scale_bar(axes)
    number = plane.index + box[plane.axis].start + 1
    layout.caption(axes, f'{plane.label}, slice {number} of {image.shape[plane.axis]}')
  anchor = (0.5, legend_height / figure.get_figheight())
  figure.legend(
    handles=handles, ncols=columns, loc='upper center', bbox_to_anchor=anchor, **layout.PLAIN
  )
  layout.save(figure, path)


def routing(
  path: str | os.PathLike,
  *,
  share: np.ndarray,
  names: Sequence[str],
  scale_labels: Sequence[str],
  entropy: np.ndarray | None = None,
  image_slice: np.ndarray | Mapping[str, np.ndarray] | None = None,
  maps: Mapping[str, np.ndarray] | None = None,
  outlines: Mapping[str, np.ndarray] | None = None,
  spacing_2d: Sequence[float] = (1.0, 1.0),
  title: str,
) -> None:
  """Draws which scale each class trusts: a table of shares, and maps for up to four classes.

  Args:
    path: PNG file to write.
    share: (K, L) mean routing weight of each scale inside each class's mask; rows sum to 1, or are
      NaN for a class without voxels.
    names: K class names.
    scale_labels: L labels, finest first, such as 'scale 1 (4 mm)'.
    entropy: (K,) fraction of log L, a last column of the table, or None.
    image_slice: (D, H) axial slice in HU for all maps, or one per class.
    maps: class name -> (D, H) expected scale index in [0, L - 1], shown inside the body; the first
      four are drawn.
    outlines: class name -> (D, H) bool, the class in that slice.
    spacing_2d: (2,) mm along x and y.
    title: one line above the picture.

  Raises:
    ValueError: if `share` does not match the names and labels, or maps come without a slice.
  """
  share, maps = np.asarray(share, float), dict(list((maps or {}).items())[:4])
  if share.shape != (len(names), len(scale_labels)):
    raise ValueError(f'share {share.shape}: expected ({len(names)}, {len(scale_labels)})')
  if maps and image_slice is None:
    raise ValueError('maps need image_slice, the anatomy behind them')
  columns_shown = [*scale_labels, *(() if entropy is None else ['entropy'])]
  if entropy is not None:
    share = np.column_stack([share, entropy])
  left = 0.085 * max(map(len, names)) + 0.3
  cell = max(0.6, 0.075 * max(map(len, columns_shown)) + 0.15)
  table_width, table_height = cell * len(columns_shown), 0.3 * len(names)
  columns, rows = ((0, 0), (1, 1), (2, 1), (2, 2), (2, 2))[len(maps)]
  side = float(np.clip((table_height + 0.3) / max(rows, 1) - _CAPTION, 2.6, 3.6))
  behind = {n: image_slice[n] if isinstance(image_slice, Mapping) else image_slice for n in maps}
  tall = [s.shape[1] / s.shape[0] * spacing_2d[1] / spacing_2d[0] for s in behind.values()]
  deep = [side * max(tall[row * columns : (row + 1) * columns]) + _CAPTION for row in range(rows)]
  maps_left = left + table_width + 0.35
  width = maps_left + (columns * (side + _GAP) + 1.5 if maps else 0.0)
  height = max(table_height + 0.3, sum(deep) + 0.1 * rows) + 0.1
  figure, top = layout.titled(title, max(width, 5.0), height)
  table = layout.inches(figure, left, top - _CAPTION - table_height, table_width, table_height)
  _share_table(table, share, names, columns_shown)
  for i, (name, scale_map) in enumerate(maps.items()):
    row, column = divmod(i, columns)
    y = top - row * 0.1 - sum(deep[:row]) - _CAPTION - side * tall[i]
    axes = layout.inches(figure, maps_left + column * (side + _GAP), y, side, side * tall[i])
    layout.caption(axes, name)
    outline = (outlines or {}).get(name)
    drawn = _scale_map(axes, behind[name], scale_map, outline, spacing_2d)
    drawn.set_clim(0, max(1, len(scale_labels) - 1))
  if maps:
    x, bar = maps_left + columns * (side + _GAP), min(2.4, side * tall[0])
    _scale_legend(layout.inches(figure, x, top - _CAPTION - bar, 0.16, bar), drawn, scale_labels)
  layout.save(figure, path)


def expert_maps(
  path: str | os.PathLike,
  *,
  images: Mapping[str, np.ndarray],
  weights: Mapping[str, np.ndarray],
  entropy: Mapping[str, np.ndarray],
  outlines: Mapping[str, np.ndarray],
  scale_labels: Sequence[str],
  spacing_2d: Sequence[float],
  title: str,
) -> None:
  """Draws, one row a class, the share of each scale and the entropy of the shares in a slice.

  Args:
    path: PNG file to write.
    images: class name -> (D, H) axial slice in HU.
    weights: class name -> (L, D, H) shares in [0, 1].
    entropy: class name -> (D, H), as a fraction of log L.
    outlines: class name -> (D, H) bool, the class in that slice.
    scale_labels: L labels, finest first.
    spacing_2d: (2,) mm along x and y.
    title: one line above the picture.
  """
  side, rise, (dx, dy) = 2.1, _CAPTION + 0.1, spacing_2d
  heights = [side * i.shape[1] * dy / (i.shape[0] * dx) for i in images.values()]
  bar_left = layout.MARGIN + (len(scale_labels) + 1) * (side + _GAP)
  figure, top = layout.titled(title, bar_left + 0.7, sum(h + rise for h in heights) + 0.1)
  y = top
  for (name, image), height in zip(images.items(), heights, strict=True):
    y -= height + rise
    labels = [f'{name}, weight of {scale_labels[0]}', *scale_labels[1:], 'entropy']
    for column, values in enumerate([*weights[name], entropy[name]]):
      axes = layout.inches(figure, layout.MARGIN + column * (side + _GAP), y, side, height)
      layout.caption(axes, labels[column])
      drawn = _scale_map(axes, image, values, outlines[name], spacing_2d)
      drawn.set_clim(0, 1)
  if heights:
    bar = layout.inches(figure, bar_left, top - rise - heights[0], 0.12, heights[0])
    _scale_legend(bar, drawn, ['0 %', '100 %'])
    bar.invert_yaxis()
  layout.save(figure, path)


@dataclasses.dataclass(frozen=True)
class _Plane:
  """A slice to draw: where it lies, and the directions at its left, right, top and bottom."""

  label: str
  axis: int
  letters: str
  index: int


def _planes(labelled: np.ndarray, spacing: Sequence[float]) -> list[_Plane]:
  """The fullest slice of each direction; of a few slices, which are strips from the side, three."""
  extents = np.multiply(labelled.shape, spacing)
  for label, axis, letters in _PLANES:
    if THIN * extents[axis] < np.delete(extents, axis).min():
      parts = np.array_split(np.arange(labelled.shape[axis]), min(3, labelled.shape[axis]))
      indices = [part[0] + _fullest(labelled.take(part, axis), axis) for part in parts]
      return [_Plane(label, axis, letters, int(index)) for index in indices]
  return [
    _Plane(label, axis, letters, _fullest(labelled, axis)) for label, axis, letters in _PLANES
  ]


def _arrange(
  shape: Sequence[int], spacing: Sequence[float], planes: Sequence[_Plane]
) -> tuple[list, float, float]:
  """Places the panels at one common scale.

  Returns:
    Their boxes (x, y from the top, width, height), and the width and height of all; inches.
  """
  extents = np.multiply(shape, spacing)
  sizes = [tuple(np.delete(extents, plane.axis)) for plane in planes]  # (width, height)
  alike = len({plane.axis for plane in planes}) == 1
  # Coronal and sagittal panels of a thin slab lie above each other.
  stacked = not alike and 2 * extents[2] < 1.3 * extents[1]
  columns = [sizes[:1], sizes[1:]] if stacked else [[size] for size in sizes]
  total = sum(max(width for width, _ in column) for column in columns)
  tallest = max(sum(height for _, height in column) for column in columns)
  gaps = 2 * layout.MARGIN + (len(columns) - 1) * _GAP
  scale = min((12.0 - gaps) / total, (7.0 if stacked or alike else 9.0) / tallest)
  panels, x, height = [], layout.MARGIN, 0.0
  for column in columns:
    y = 0.0
    for size in column:
      panels.append((x, y, size[0] * scale, size[1] * scale))
      y += size[1] * scale + _CAPTION + 0.1
    x += max(width for width, _ in column) * scale + _GAP
    height = max(height, y - _CAPTION - 0.1)
  return panels, total * scale + gaps, height


def _fullest(labelled: np.ndarray, axis: int) -> int:
  """Index of the slice with most labelled voxels; the middle one where nothing is labelled."""
  area = labelled.sum(axis=tuple(a for a in range(3) if a != axis))
  return int(area.argmax()) if area.any() else len(area) // 2


def _view(volume, axis: int, index: int, box: Sequence[slice] = (slice(0, None),) * 3):
  """A slice of a box as rows of pixels from the bottom up, right or anterior on the left."""
  return volume[(*box[:axis], box[axis].start + index, *box[axis + 1 :])][::-1].T


def _show(axes: Axes, pixels: np.ndarray, step: Sequence[float], **style):
  """Shows pixels (rows upwards) with mm as the unit of both axes."""
  rows, columns = pixels.shape
  extent = (0, columns * step[0], 0, rows * step[1])
  axes.set(facecolor='black', xticks=[], yticks=[], anchor='N')
  axes.spines[:].set_visible(False)
  shown = axes.imshow(pixels, origin='lower', extent=extent, **style)
  axes.autoscale(False)  # Outlines at the border would stretch the panel.
  return shown


def _anatomy(axes: Axes, pixels: np.ndarray, step: Sequence[float], window) -> None:
  # Clipped first: the interpolation rings at bone and metal otherwise.
  _show(axes, np.clip(pixels, *window), step, cmap='gray', interpolation='bicubic').set_clim(window)


def _scale_map(axes: Axes, behind, scale_map, outline, step: Sequence[float]):
  """One (x, y) map of expected scales over its anatomy, inside the body only."""
  _anatomy(axes, behind[::-1].T, step, SOFT_TISSUE)
  inside = np.where(body.patient(behind), scale_map, np.nan)[::-1].T
  drawn = _show(axes, inside, step, cmap='viridis', alpha=0.55, interpolation='nearest')
  if outline is not None:
    _contour(axes, outline[::-1].T, step, 'white', linewidths=1.3)
  _letters(axes, 'RLAP')
  return drawn


def _scale_legend(axes: Axes, drawn, scale_labels: Sequence[str]) -> None:
  colorbar = axes.figure.colorbar(drawn, cax=axes, ticks=range(len(scale_labels)))
  colorbar.solids.set_alpha(1.0)
  axes.set_yticklabels(scale_labels, fontsize=8, color=layout.INK)
  axes.invert_yaxis()


def _contour(
  axes: Axes, mask: np.ndarray, step: Sequence[float], line, *, fill=0.0, **style
) -> None:
  """Draws a mask's outline in mm, and its inside with opacity `fill`."""
  padded = np.pad(mask.astype(np.float32), 1)  # Closes outlines at the border.
  x, y = ((np.arange(-1, n + 1) + 0.5) * mm for n, mm in zip(mask.T.shape, step, strict=True))
  if fill:
    axes.contourf(x, y, padded, levels=[0.5, 1.5], colors=[line], alpha=fill)
  axes.contour(x, y, padded, levels=[0.5], colors=[line], **style)


def _draw_masks(
  axes: Axes, predictions: Mapping, truths: Mapping, colours: Mapping, step: Sequence[float]
) -> None:
  """Draws predictions, then truths; large structures first, so that small ones stay visible."""
  for name, mask in sorted(predictions.items(), key=lambda item: -item[1].sum()):
    if mask.any():
      _contour(axes, mask, step, colours[name], fill=0.35, linewidths=1.2)
  for name, mask in sorted(truths.items(), key=lambda item: -item[1].sum()):
    if mask.any():
      _contour(axes, mask, step, 'black', linewidths=1.5, alpha=0.45)
      _contour(axes, mask, step, _lighter(colours[name]), linewidths=1.2, linestyles=[_DASHES])


def _visible(name: str, slices: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> bool:
  return any(name in group and group[name].any() for groups in slices for group in groups)


def _lighter(rgb: Sequence[float]) -> tuple[float, ...]:
  return tuple(0.5 + 0.5 * value for value in rgb)


def _letters(axes: Axes, letters: str) -> None:
  """Writes the directions at the left, right, top and bottom edges."""
  places = ((0.015, 0.5), (0.985, 0.5), (0.5, 0.985), (0.5, 0.015))
  aligns = (('left', 'center'), ('right', 'center'), ('center', 'top'), ('center', 'bottom'))
  for letter, (x, y), (ha, va) in zip(letters, places, aligns, strict=True):
    text = axes.text(x, y, letter, ha=ha, va=va, transform=axes.transAxes, fontsize=9)
    text.set(color='white', weight='bold', path_effects=_OUTLINE)


def _scale_bar(axes: Axes) -> None:
  width, height = axes.get_xlim()[1], axes.get_ylim()[1]
  length = 50 if width > 150 else 10
  x, y = 0.03 * width, 0.03 * height
  axes.add_patch(Rectangle((x, y), length, 0.008 * height, color='white', path_effects=_OUTLINE))
  text = f'{length // 10} cm'
  label = axes.text(x + length / 2, y + 0.02 * height, text, ha='center', va='bottom', fontsize=8)
  label.set(color='white', path_effects=_OUTLINE)


def _legend_handles(names: Sequence[str], colours: Mapping, with_truth: bool) -> list:
  handles: list = [
    Patch(facecolor=(*colours[name], 0.6), edgecolor=colours[name], label=name) for name in names
  ]
  if not handles:
    return [Patch(facecolor='none', label='nothing labelled')]
  if with_truth:
    grey = '#777777'
    handles.append(Patch(facecolor='#CCCCCC', edgecolor=grey, label='prediction'))
    handles.append(Line2D([], [], color=grey, linestyle=_DASHES, label='reference'))
  return handles


def _legend_grid(handles: Sequence, width: float) -> tuple[int, int]:
  """Columns and rows of a legend that fits the width, inches, at 9 points."""
  column = 0.08 * max(len(handle.get_label()) for handle in handles) + 0.65
  columns = min(len(handles), max(1, int(width / column)))
  return columns, math.ceil(len(handles) / columns)


def _share_table(axes: Axes, share, names: Sequence[str], scale_labels: Sequence[str]) -> None:
  axes.imshow(share, cmap='Blues', vmin=0, vmax=1, aspect='auto')
  for (row, column), value in np.ndenumerate(share):
    text = '–' if math.isnan(value) else f'{100 * value:.0f} %'
    ink = 'white' if value > 0.6 else layout.INK
    axes.text(column, row, text, ha='center', va='center', fontsize=8, color=ink)
  axes.set_yticks(range(len(names)), names, fontsize=9, color=layout.INK)
  axes.set_xticks(range(len(scale_labels)), scale_labels, fontsize=8, color=layout.INK)
  axes.xaxis.tick_top()
  axes.tick_params(length=0)
  axes.set_xticks(np.arange(0.5, len(scale_labels) - 1), minor=True)
  axes.set_yticks(np.arange(0.5, len(names) - 1), minor=True)
  axes.grid(which='minor', color='white', linewidth=1.5)
  axes.tick_params(which='minor', length=0)
  axes.spines[:].set_visible(False)
