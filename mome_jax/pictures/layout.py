"""What the pictures share: figures laid out in inches, with one ink and one title style."""

import functools
import io
import os
import textwrap
from typing import Any

from etils import epath
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

MARGIN, GAP, CAPTION = 0.15, 0.15, 0.25  # inches: around all, between panels, over a panel
INK = '#222222'
_FONT, _BOX = 'DejaVu Sans', '\u25a1'
PLAIN: dict[str, Any] = {'frameon': False, 'fontsize': 9, 'labelcolor': INK}  # of legends


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
  file = epath.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  for text in figure.findobj(Text):
    text.set_parse_math(False)  # dollars in names of scans and prompts are no formulas
    _make_readable(text)
  png = io.BytesIO()
  figure.savefig(png, dpi=150, format='png')
  file.write_bytes(png.getvalue())


def _make_readable(text: Text) -> None:
  """Gives a text in another script a font of this machine that has it, or boxes where none has."""
  families = [_FONT]
  for letter in sorted(set(text.get_text())):
    family = _family_with(letter) if letter.isprintable() else _FONT
    if family is None:
      text.set_text(text.get_text().replace(letter, _BOX))
    elif family not in families:
      families.append(family)
  if len(families) > 1:
    text.set(fontfamily=families, weight='normal')  # few have a bold face


@functools.cache
def _family_with(letter: str) -> str | None:
  """The first family of upright fonts that has a letter; ours is the first of all."""
  fonts = [font for font in font_manager.fontManager.ttflist if font.style == 'normal']
  fonts.sort(key=lambda font: (font.name != _FONT, font.weight != 400, font.name))
  for font in fonts:
    drawn = not font.name.startswith('Last Resort')  # which has boxes for everything
    if drawn and font_manager.get_font(font.fname).get_char_index(ord(letter)):
      return font.name
  return None
