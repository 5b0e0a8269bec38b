"""One slice of a scan in a panel: grey levels, outlines of masks, directions, a scale in cm.

Pixels are rows from the bottom up; the patient's right or anterior is on the left. The unit of both
axes is mm.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.patheffects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

SOFT_TISSUE = (-160.0, 240.0)  # HU that are black and white
_OUTLINE = [matplotlib.patheffects.withStroke(linewidth=1.6, foreground='black')]


def show(
  axes: Axes, pixels: np.ndarray, step: Sequence[float] | np.ndarray, **style: Any
) -> AxesImage:
  """Shows numbers as colours.

  Args:
    axes: the panel.
    pixels: (rows, columns).
    step: (2,) mm from column to column and from row to row.
    **style: of `Axes.imshow`.
  """
  rows, columns = pixels.shape
  extent = (0, columns * step[0], 0, rows * step[1])
  axes.set(facecolor='black', xticks=[], yticks=[], anchor='N')
  axes.spines[:].set_visible(False)
  shown = axes.imshow(pixels, origin='lower', extent=extent, **style)
  axes.autoscale(False)  # Outlines at the border would stretch the panel.
  return shown


def anatomy(axes: Axes, pixels: np.ndarray, step: Sequence[float] | np.ndarray) -> None:
  """Shows (rows, columns) HU in the window `SOFT_TISSUE`."""
  # Clipped first: the interpolation rings at bone and metal otherwise.
  pixels = np.clip(pixels, *SOFT_TISSUE)
  show(axes, pixels, step, cmap='gray', interpolation='bicubic').set_clim(*SOFT_TISSUE)


def contour(
  axes: Axes,
  mask: np.ndarray,
  step: Sequence[float] | np.ndarray,
  line: str | Sequence[float],
  *,
  fill: float = 0.0,
  hatch: str = '',
  **style: Any,
) -> None:
  """Draws a mask's outline in mm, and its inside with opacity `fill`, or hatched."""
  padded = np.pad(mask.astype(np.float32), 1)  # Closes outlines at the border.
  x, y = ((np.arange(-1, n + 1) + 0.5) * mm for n, mm in zip(mask.T.shape, step, strict=True))
  if fill:
    axes.contourf(x, y, padded, levels=[0.5, 1.5], colors=[line], alpha=fill)
  if hatch:
    stripes = axes.contourf(x, y, padded, levels=[0.5, 1.5], colors='none', hatches=[hatch])
    stripes.set(edgecolor=line, linewidth=0.0)
  axes.contour(x, y, padded, levels=[0.5], colors=[line], **style)


def letters(axes: Axes, letters: str) -> None:
  """Writes the directions at the left, right, top and bottom edges."""
  places = ((0.015, 0.5), (0.985, 0.5), (0.5, 0.985), (0.5, 0.015))
  aligns = (('left', 'center'), ('right', 'center'), ('center', 'top'), ('center', 'bottom'))
  for letter, (x, y), (ha, va) in zip(letters, places, aligns, strict=True):
    text = axes.text(x, y, letter, ha=ha, va=va, transform=axes.transAxes, fontsize=9)
    text.set(color='white', weight='bold', path_effects=_OUTLINE)


def scale_bar(axes: Axes) -> None:
  """Draws a bar of 5 cm, or 1 cm in a small panel."""
  width, height = axes.get_xlim()[1], axes.get_ylim()[1]
  length = 50 if width > 150 else 10
  x, y = 0.03 * width, 0.03 * height
  axes.add_patch(Rectangle((x, y), length, 0.008 * height, color='white', path_effects=_OUTLINE))
  text = f'{length // 10} cm'
  label = axes.text(x + length / 2, y + 0.02 * height, text, ha='center', va='bottom', fontsize=8)
  label.set(color='white', path_effects=_OUTLINE)
