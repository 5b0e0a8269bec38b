"""What the pictures share: figures laid out in inches, with one ink and one title style."""

import io
import os
import textwrap

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARGIN = 0.15  # inches
INK = '#222222'
PLAIN = {'frameon': False, 'fontsize': 9, 'labelcolor': INK}  # of legends


def titled(title: str, width: float, height: float) -> tuple[Figure, float]:
  """A white figure with a title above `height` inches of content; returns the content's top too."""
  lines = textwrap.wrap(title, max(20, int((width - 2 * MARGIN) / 0.095))) or ['']
  head = 0.14 + 0.22 * len(lines)
  total = height + head + MARGIN
  figure = Figure(figsize=(width, total), facecolor='white')
  text = figure.text(MARGIN / width, 1 - 0.12 / total, '\n'.join(lines), va='top', fontsize=12)
  text.set(weight='bold', color=INK)
  return figure, total - head


def inches(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
  """Axes at a place in inches from the lower left corner of the figure."""
  total_width, total_height = figure.get_size_inches()
  box = (x / total_width, y / total_height, width / total_width, height / total_height)
  return figure.add_axes(box)


def caption(axes: Axes, text: str) -> None:
  """A small title over the left end of a panel."""
  axes.set_title(text, fontsize=9, color=INK, pad=4, loc='left')


def save(figure: Figure, path: str | os.PathLike) -> None:
  """Writes a PNG file; folders are made where missing."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  png = io.BytesIO()
  figure.savefig(png, dpi=150, format='png')
  path.write_bytes(png.getvalue())
