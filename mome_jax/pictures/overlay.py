"""Masks drawn over a scan, in three planes: PNG files, no display needed."""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from input_pipeline.ct import body
from mome_jax.pictures import ct_slice, layout
from mome_jax.pictures.colours import palette

THIN = 6  # times thinner than long and wide: from the side, a scan is a strip
_PLANES = (('Axial', 2, 'RLAP'), ('Coronal', 1, 'RLSI'), ('Sagittal', 0, 'APSI'))
_LEGEND_ROW = 0.205  # inches
_MARGIN_MM = 8  # around the body
_DASHES = (0, (3.5, 2))
HATCH = '/////'
RGB = Sequence[float]  # in [0, 1]


class Mask(Protocol):
  """(D, H, W) bool, or what is sliced like it."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(D, H, W)."""

  def __getitem__(self, where: Any, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class CodeMask:
  """The mask of some codes, looked up where it is sliced: a picture needs little of it.

  Attributes:
    codes: (D, H, W) uint8.
    table: (256,) bool, whether a code belongs to the mask.
  """

  codes: np.ndarray
  table: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    """(D, H, W)."""
    return self.codes.shape

  def __getitem__(self, where: Any) -> np.ndarray:
    return np.asarray(self.table[self.codes[where]])


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
  """What is drawn over a scan.

  Attributes:
    masks: class name -> mask of the prediction.
    truths: class name -> mask of the reference.
    colours: of all these classes; empty is their `palette`.
    labelled: (D, H, W) bool, union of all masks; made from them where it is None.
    implausible: names of predicted masks that are drawn hatched.
  """

  masks: Mapping[str, Mask]
  truths: Mapping[str, Mask] = dataclasses.field(default_factory=dict)
  colours: Mapping[str, RGB] = dataclasses.field(default_factory=dict)
  labelled: np.ndarray | None = None
  implausible: Collection[str] = ()

  @property
  def names(self) -> list[str]:
    """All classes, those of the prediction first."""
    return list(dict.fromkeys([*self.masks, *self.truths]))

  def union(self, shape: Sequence[int]) -> np.ndarray:
    """(D, H, W) bool: what some mask holds.

    Raises:
      ValueError: if a mask has another shape than the image.
    """
    masks = [*self.masks.items(), *self.truths.items()]
    for name, mask in masks:
      if mask.shape != shape:
        raise ValueError(f'{name}: mask {mask.shape} is not on the grid of the image {shape}')
    if self.labelled is not None:
      return self.labelled
    labelled = np.zeros(shape, bool)
    for _, mask in masks:
      labelled |= mask[...].astype(bool)
    return labelled


def overlay(
  path: str | os.PathLike,
  image: np.ndarray,
  spacing: Sequence[float] | np.ndarray,
  layers: Layers,
  title: str,
) -> None:
  """Draws masks over a scan in three planes, each through its slice with most labelled voxels.

  Of few slices, which from the side are strips, up to three are drawn instead. Predictions
  are filled with a solid outline, implausible ones hatched, truths are dashed. The panels share one
  scale.

  Args:
    path: PNG file to write.
    image: (D, H, W) CT in HU, canonical: x grows to the patient's right, y to anterior, z to
      superior. It is shown as radiologists read it: right on the left, anterior or superior up.
    spacing: (3,) mm.
    layers: the masks, on the image's grid.
    title: one line above the panels; wrapped where long.

  Raises:
    ValueError: if a mask's shape is not the image's.
  """
  labelled = layers.union(image.shape)
  box = body.box(body.is_dense(image) | labelled, [round(_MARGIN_MM / mm) for mm in spacing])
  planes = _planes(labelled[box], spacing)
  panels, width, height = _arrange(labelled[box].shape, spacing, planes)
  # Slices first: only classes that some panel shows enter the legend.
  slices = [_slices(layers, plane, box) for plane in planes]
  names = [name for name in layers.names if _visible(name, slices)]
  colours = layers.colours or palette(layers.names)
  handles = _legend_handles(names, colours, layers)
  columns, rows = _legend_grid(handles, width)
  legend_height = _LEGEND_ROW * rows + 0.2
  figure, top = layout.titled(title, width, height + layout.CAPTION + legend_height)
  for plane, panel, masks in zip(planes, panels, slices, strict=True):
    x, y, panel_width, panel_height = panel
    bottom = top - layout.CAPTION - y - panel_height
    axes = layout.inches(figure, x, bottom, panel_width, panel_height)
    step = [mm for a, mm in enumerate(spacing) if a != plane.axis]
    ct_slice.anatomy(axes, _view(image, plane, box), step)
    _draw_masks(axes, *masks, colours, step, layers.implausible)
    ct_slice.letters(axes, plane.letters)
    if plane is planes[0]:
      ct_slice.scale_bar(axes)
    number = plane.index + box[plane.axis].start + 1
    layout.caption(axes, f'{plane.label}, slice {number} of {image.shape[plane.axis]}')
  anchor = (0.5, legend_height / figure.get_figheight())
  figure.legend(
    handles=handles, ncols=columns, loc='upper center', bbox_to_anchor=anchor, **layout.PLAIN
  )
  layout.save(figure, path)


@dataclasses.dataclass(frozen=True)
class _Plane:
  """A slice to draw: where it lies, and the directions at its left, right, top and bottom."""

  label: str
  axis: int
  letters: str
  index: int


def _planes(labelled: np.ndarray, spacing: Sequence[float] | np.ndarray) -> list[_Plane]:
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
  shape: Sequence[int], spacing: Sequence[float] | np.ndarray, planes: Sequence[_Plane]
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
  gaps = 2 * layout.MARGIN + (len(columns) - 1) * layout.GAP
  scale = min((12.0 - gaps) / total, (7.0 if stacked or alike else 9.0) / tallest)
  panels, x, height = [], layout.MARGIN, 0.0
  for column in columns:
    y = 0.0
    for size in column:
      panels.append((x, y, size[0] * scale, size[1] * scale))
      y += size[1] * scale + layout.CAPTION + 0.1
    x += max(width for width, _ in column) * scale + layout.GAP
    height = max(height, y - layout.CAPTION - 0.1)
  return panels, total * scale + gaps, height


def _fullest(labelled: np.ndarray, axis: int) -> int:
  """Index of the slice with most labelled voxels; the middle one where nothing is labelled."""
  area = labelled.sum(axis=tuple(a for a in range(3) if a != axis))
  return int(area.argmax()) if area.any() else len(area) // 2


def _view(volume: Mask, plane: _Plane, box: Sequence[slice]) -> np.ndarray:
  """A slice of a box as rows of pixels from the bottom up, right or anterior on the left."""
  at = plane.axis
  return volume[(*box[:at], box[at].start + plane.index, *box[at + 1 :])][::-1].T


def _slices(
  layers: Layers, plane: _Plane, box: Sequence[slice]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Predictions and truths in a plane."""
  masks, truths = (
    {name: _view(mask, plane, box) for name, mask in group.items()}
    for group in (layers.masks, layers.truths)
  )
  return masks, truths


def _draw_masks(
  axes: Axes,
  predictions: Mapping,
  truths: Mapping,
  colours: Mapping,
  step: Sequence[float],
  implausible: Collection[str],
) -> None:
  """Draws predictions, then truths; large structures first, so that small ones stay visible."""
  for name, mask in sorted(predictions.items(), key=lambda item: -item[1].sum()):
    if mask.any():
      hatch = HATCH if name in implausible else ''
      fill = 0.0 if hatch else 0.35
      ct_slice.contour(axes, mask, step, colours[name], fill=fill, hatch=hatch, linewidths=1.2)
  for name, mask in sorted(truths.items(), key=lambda item: -item[1].sum()):
    if mask.any():
      ct_slice.contour(axes, mask, step, 'black', linewidths=1.5, alpha=0.45)
      ct_slice.contour(
        axes, mask, step, _lighter(colours[name]), linewidths=1.2, linestyles=[_DASHES]
      )


def _visible(name: str, slices: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> bool:
  return any(name in group and group[name].any() for groups in slices for group in groups)


def _lighter(rgb: Sequence[float]) -> tuple[float, ...]:
  return tuple(0.5 + 0.5 * value for value in rgb)


def _legend_handles(names: Sequence[str], colours: Mapping, layers: Layers) -> list:
  handles: list = []
  for name in names:
    colour = colours[name]
    if name in layers.implausible:
      dark = tuple(0.75 * value for value in colour)  # a light hue on white could not be seen
      label = f'{name} (implausible)'
      handles.append(Patch(facecolor='none', edgecolor=dark, hatch=HATCH, label=label))
    else:
      handles.append(Patch(facecolor=(*colour, 0.6), edgecolor=colour, label=name))
  if not handles:
    return [Patch(facecolor='none', label='nothing labelled')]
  if layers.truths:
    grey = '#777777'
    handles.append(Patch(facecolor='#CCCCCC', edgecolor=grey, label='prediction'))
    handles.append(Line2D([], [], color=grey, linestyle=_DASHES, label='reference'))
  return handles


def _legend_grid(handles: Sequence, width: float) -> tuple[int, int]:
  """Columns and rows of a legend that fits the width, inches, at 9 points."""
  column = 0.08 * max(len(handle.get_label()) for handle in handles) + 0.65
  columns = min(len(handles), max(1, int(width / column)))
  return columns, math.ceil(len(handles) / columns)
