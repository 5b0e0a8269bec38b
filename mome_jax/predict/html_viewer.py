"""A page to look at one segmented scan: a single HTML file that needs no network and no server.

The page holds NiiVue (`assets/niivue-*.js.gz`, its licence beside it), the scan, the labels and the
routing maps. Its content security policy forbids every request, so that no voxel can leave it. The
viewer itself, `assets/viewer.*`, is also that of the page of `mome_jax.serve`, which is told of
scans and masks by the same functions.
"""

import gzip
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.ct import volume
from mome_jax import shipped
from mome_jax.inference.router_maps import RoutingMaps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import viewer_data

_NIIVUE = 'niivue-0.69.0.umd.js.gz'
_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
  'img-src data: blob:; connect-src data: blob:; font-src data:'
)
SIDES = (256, 208, 168, 136)  # longest side in voxels; the next one where the page is too large
_IMAGE_BYTES = 12 << 20


def write(
  path: str | os.PathLike,
  scan: volume.Volume,
  segmentation: Segmentation,
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str,
  origin: Mapping[str, Any],
  routing: RoutingMaps | None = None,
) -> None:
  """Writes the page of a scan, at most about 20 MB.

  Shown are at most 256 voxels along each axis, HU in steps of 4, and labels of the nearest voxels;
  volumes are those of the legend, measured on the scan's own grid.

  Args:
    path: HTML file to write.
    scan: the CT.
    segmentation: of it.
    rows: of the legend; see `viewer_data.masks`.
    title: heading of the page.
    origin: 'step' of the model, 'warnings' and the 'input' whose folder they do not show; all
      optional.
    routing: of the scan, or None.
  """
  for side in SIDES:
    step = viewer_data.shown_step(scan, side)
    shown = viewer_data.encoded(viewer_data.image(scan, step))
    if len(shown) <= _IMAGE_BYTES:
      break
  trained = origin.get('step')
  data = {
    **viewer_data.head(scan, step, title),
    'about': 'Segmented by MoME-JAX' + ('' if trained is None else f', training step {trained}'),
    'warnings': without_folders(origin.get('warnings', ()), origin.get('input', '')),
    'image': shown,
    **viewer_data.masks(scan, segmentation, rows, step, routing),
  }
  # Names may be any text: what could end the script element is escaped.
  text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
  scripts = [
    f'<script>{niivue().decode()}</script>',
    f'<script type="application/json" id="data">{text}</script>',
    f'<script>{asset("viewer.js")}</script>',
  ]
  style = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
  style += f'<style>\n{asset("viewer.css")}</style>'
  pathlib.Path(path).write_text(page(style, '', '\n'.join(scripts)), encoding='utf-8')


def asset(name: str) -> str:
  """The text of a file of the viewer."""
  return (shipped.ASSETS / name).read_text(encoding='utf-8')


def niivue() -> bytes:
  """The library that draws: JavaScript."""
  return gzip.decompress((shipped.ASSETS / _NIIVUE).read_bytes())


def page(style: str, controls: str, scripts: str) -> str:
  """The page of the viewer.

  Args:
    style: HTML of its head.
    controls: HTML above the viewer's own controls.
    scripts: HTML at its end.
  """
  text = asset('viewer.html')
  for mark, content in (('HEAD', style), ('CONTROLS', controls), ('SCRIPTS', scripts)):
    before, after = text.split(f'<!-- {mark} -->\n')
    text = f'{before}{content}\n{after}'
  return text


def without_folders(texts: Sequence[str], path: str) -> list[str]:
  """Warnings with the names of files alone: a page is handed on, and its side bar is narrow."""
  paths = pathlib.Path(path), pathlib.Path(os.path.abspath(path))
  folders = {str(folder) for path in paths for folder in path.parents if folder.name}
  for folder in sorted(folders, key=len, reverse=True):
    start = re.compile(rf'(?<![^\s\'"(]){re.escape(folder + os.sep)}')
    texts = [start.sub('', text) for text in texts]
  return list(texts)
