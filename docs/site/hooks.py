"""Of the site: equations become MathML and figures part of the page: no page needs a script."""

import pathlib
import re

import latex2mathml.converter

_MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)
_FIGURE = re.compile(r'<img alt="([^"]*)" src="([^"]*figures/[^"]*\.svg)"[^>]*>')
# Short code in running text: an option broken after its first hyphen cannot be read.
_SHORT = re.compile(r'(?<!</span>)<code>([^<]{1,36})</code>')


def on_page_content(html: str, page, config, files) -> str:
  """Called by MkDocs with the HTML of each page."""
  del files
  folder = pathlib.Path(config.docs_dir)

  def draw(match: re.Match) -> str:
    name = pathlib.PurePosixPath(match[2]).name
    return (
      f'<div class="figure" role="img" aria-label="{match[1]}">'
      + (folder / 'figures' / name).read_text(encoding='utf-8')
      + '</div>'
    )

  html = _SHORT.sub(r'<code class="whole">\1</code>', html)
  return _FIGURE.sub(draw, _MATH.sub(_typeset, html))


def _typeset(match: re.Match) -> str:
  latex = match[3]
  for entity, character in (('&lt;', '<'), ('&gt;', '>'), ('&amp;', '&')):
    latex = latex.replace(entity, character)
  display = 'block' if match[2] == '[' else 'inline'
  mathml = latex2mathml.converter.convert(latex.strip(), display=display)
  return f'<div class="equation">{mathml}</div>' if display == 'block' else mathml
