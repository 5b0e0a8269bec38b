"""What the viewer is told of a scan and its masks: JSON with small volumes in it."""

import base64
import gzip
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from input_pipeline.ct import body, resample, volume
from mome_jax.inference.router_maps import RoutingMaps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures import overlay
from mome_jax.pictures.colours import palette
from mome_jax.predict import plausible_masks

_ROUTING_BYTES = 5 << 20
_STRIPE_MM = 4.0
_HU_STEP = 4  # finer than noise; a soft tissue window keeps 100 grey levels


def shown_step(scan: volume.Volume, side: int) -> np.ndarray:
  """(3,) mm of the voxels in which a scan is shown: at most `side` along each axis."""
  return np.maximum(scan.spacing, scan.spacing * scan.array.shape / side)


def head(scan: volume.Volume, step: np.ndarray, title: str) -> dict[str, Any]:
  """What the viewer is told of a scan beside its image; `step` is of `shown_step`."""
  extents = np.multiply(scan.array.shape, scan.spacing)
  return {
    'title': title,
    'thin': bool(overlay.THIN * extents[2] < extents[:2].min()),
    'coarser': None if np.allclose(step, scan.spacing) else _coarser(scan, step),
  }


def image(scan: volume.Volume, step: np.ndarray, *, level: int = 6) -> bytes:
  """The scan as it is shown: NIfTI, compressed by gzip at a level."""
  hu = scan.array
  if not np.allclose(step, scan.spacing):
    hu = resample.resample(hu, tuple(scan.spacing), tuple(step), order=1)
  hu = np.clip(np.rint(hu / _HU_STEP) * _HU_STEP, -1024, 3072).astype(np.int16)
  return _nifti(hu, _shown_affine(scan, hu.shape, step), level)


def masks(
  scan: volume.Volume,
  segmentation: Segmentation,
  rows: Sequence[Mapping[str, Any]],
  step: np.ndarray,
  routing: RoutingMaps | None = None,
) -> dict[str, Any]:
  """What the viewer is told of some masks.

  Args:
    scan: the CT.
    segmentation: of it.
    rows: of the legend, of each class that is shown: 'name', 'volume_ml', what it was asked for as,
      'prompt', 'also' and 'taken_as', whether it is 'plausible', 'reasons', 'removed_ml' and 'cut',
      and 'unsure'. What is not plausible is striped.
    step: of `shown_step`.
    routing: of the scan, or None.
  """
  names = [row['name'] for row in rows]
  striped = plausible_masks.implausible(rows)
  labels, codes, gaps = _labels(scan, segmentation, names, step, striped)
  colours = palette(names)
  return {
    'classes': [
      {
        'name': row['name'],
        'asked': _asked(row),
        'colour': [round(255 * v) for v in colours[row['name']]],
        'volume_ml': row['volume_ml'],
        'present': segmentation.boxes[row['name']] is not None,
        'centre': _centre(scan, segmentation, row['name']),
        'plausible': row.get('plausible'),
        'doubts': row.get('reasons', ()),
        'removed_ml': row.get('removed_ml', 0.0),
        'cut': row.get('cut'),
        'unsure': row.get('unsure'),
      }
      for row in rows
    ],
    'labels': labels,
    'codes': codes,
    'gaps': gaps,
    'routing': None if routing is None else _routing(scan, routing, segmentation, rows),
  }


def _coarser(scan: volume.Volume, step: np.ndarray) -> str:
  """Tells that the page shows less than the scan holds."""
  sizes = [' x '.join(f'{mm:.2g}' for mm in spacing) for spacing in (step, scan.spacing)]
  return f'Shown in voxels of {sizes[0]} mm; those of the scan are {sizes[1]} mm.'


def _affine(scan: volume.Volume, step: np.ndarray, first: np.ndarray) -> np.ndarray:
  """(4, 4) voxel -> mm (RAS+) of a grid along the canonical axes.

  The scan's centre lies where it lies in the world; oblique scans are shown along their own axes.

  Args:
    scan: the CT.
    step: (3,) mm.
    first: (3,) mm, centre of the first voxel from the scan's centre.
  """
  middle = (np.array(scan.array.shape) - 1) / 2
  affine = np.diag([*step, 1.0])
  affine[:3, 3] = (scan.geometry.canonical_affine @ [*middle, 1])[:3] + first
  return affine


def _nifti(array: np.ndarray, affine: np.ndarray, level: int = 6) -> bytes:
  image = nib.Nifti1Image(array, affine)
  image.header.set_xyzt_units('mm')
  return gzip.compress(image.to_bytes(), level, mtime=0)


def encoded(content: bytes) -> str:
  """Base64."""
  return base64.b64encode(content).decode()


def _shown_affine(scan: volume.Volume, shape: Sequence[int], step: np.ndarray) -> np.ndarray:
  return _affine(scan, step, -(np.array(shape[:3]) - 1) / 2 * step)


def _asked(row: Mapping[str, Any]) -> str:
  """What a class was asked for as, where that is not its name, and whether the model knows it."""
  doubt = {'near': 'near to what the model knows', 'unfamiliar': 'unknown to the model'}
  verdict = doubt.get(row.get('verdict', ''), '')
  if row.get('taken_as') == 'free':
    return f'free text, {verdict}' if verdict else 'free text'
  prompts = [text for text in (row.get('prompt', ''), *row.get('also', ())) if text]
  others = [text for text in prompts if text.casefold() != row['name']]
  asked = f'asked for as {", ".join(others)}' if others else ''
  return ', '.join(filter(None, (asked, verdict)))


def _labels(
  scan: volume.Volume,
  segmentation: Segmentation,
  names: Sequence[str],
  step: np.ndarray,
  striped: Collection[str],
) -> tuple[str, list[list[int]], list[int]]:
  """A label map that keeps which classes overlap.

  Returns:
    The map; for every code from 0 on the indices of `names` that it belongs to: classes, innermost
    first, then what competes with nothing, in order; and the codes of the gaps between the stripes
    of what is striped.
  """
  template, old, new = segmentation.template, tuple(scan.spacing), tuple(step)
  winner = resample.resample(segmentation.winner, old, new, order=0)
  over = resample.resample(segmentation.over, old, new, order=0)
  shown = Segmentation(segmentation.names, winner, over, template)
  codes = np.zeros(winner.shape, np.uint32)
  meanings: list[list[int]] = [[]]
  depth = lambda name: len(template.ancestors(name)) if name in template.names() else 0
  for k in sorted(
    range(len(names)), key=lambda k: (names[k] in segmentation.free, -depth(names[k]))
  ):
    name = names[k]
    if name in segmentation.free:
      inside = resample.resample(segmentation.mask(name).view(np.uint8), old, new, order=0) > 0
    else:
      inside = shown.mask(name)
    before, index = np.unique(codes[inside], return_inverse=True)
    codes[inside] = len(meanings) + index
    meanings += [[*meanings[code], k] for code in before]
  first_gap = len(meanings)
  _stripe(codes, meanings, [names.index(name) for name in striped], step)
  counts = np.bincount(codes.ravel(), minlength=len(meanings))
  counts[0] = 1  # the background keeps its code
  used = sorted(np.flatnonzero(counts), key=lambda code: meanings[code])
  kind = np.uint8 if len(used) <= 256 else np.uint16
  table = np.zeros(len(meanings), kind)
  table[used] = np.arange(len(used))
  text = encoded(_nifti(table[codes], _shown_affine(scan, codes.shape, step)))
  gaps = [number for number, code in enumerate(used) if code >= first_gap]
  return text, [meanings[code] for code in used], gaps


def _stripe(
  codes: np.ndarray, meanings: list[list[int]], striped: Collection[int], step: np.ndarray
) -> None:
  """Gives every second diagonal stripe of some classes codes of its own, of the same meaning."""
  inside = np.array([any(k in striped for k in members) for members in meanings])[codes]
  if not inside.any():
    return
  width = max(_STRIPE_MM, 2 * float(step.max()))
  mm = sum(np.ix_(*(np.arange(n) * size for n, size in zip(codes.shape, step, strict=True))))
  gaps = inside & (mm // width % 2 == 1)
  before, index = np.unique(codes[gaps], return_inverse=True)
  codes[gaps] = len(meanings) + index
  meanings += [meanings[code] for code in before]


def _centre(scan: volume.Volume, segmentation: Segmentation, name: str) -> list[float] | None:
  """World mm of a voxel of the class, in its largest axial section; None where it has none."""
  box = segmentation.boxes[name]
  if box is None:
    return None
  mask = segmentation.mask(name, box)
  z = int(mask.sum((0, 1)).argmax())
  columns = np.argwhere(mask[..., z])
  x, y = columns[np.square(columns - columns.mean(0)).sum(1).argmin()]
  voxel = np.array([x, y, z]) + [span.start for span in box]
  steps = (voxel - (np.array(scan.array.shape) - 1) / 2) * scan.spacing
  return [round(float(mm), 2) for mm in _affine(scan, scan.spacing, steps)[:3, 3]]


def _routing(
  scan: volume.Volume,
  routing: RoutingMaps,
  segmentation: Segmentation,
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """Table and maps: of each present class a file of L + 2 frames: shares, mean scale, entropy.

  0 is air, 1 to 255 stand for 0 to 1. Rows and keys are those of `rows`.
  """
  column = [routing.names.index(row['name']) for row in rows]
  present = [k for k, row in enumerate(rows) if segmentation.boxes[row['name']] is not None]
  dense = _dense_cells(scan, routing)
  for factor in (1, 2, 4):
    maps = {k: _frames(scan, routing, column[k], dense, factor) for k in present}
    if sum(map(len, maps.values())) <= _ROUTING_BYTES:
      break
  return {
    'scales': routing.scale_labels,
    'share': _rounded(routing.share[column]),
    'entropy': _rounded(routing.mean_entropy[column]),
    'maps': maps,
  }


def _dense_cells(scan: volume.Volume, routing: RoutingMaps) -> np.ndarray:
  """(d, h, w) bool: cells of the body, by their nearest voxels."""
  shape = routing.entropy.shape[1:]
  index = []
  for axis, n in enumerate(shape):
    mm = routing.origin[axis] + np.arange(n) * routing.cell[axis]
    voxel = np.rint(mm / scan.spacing[axis] + (scan.array.shape[axis] - 1) / 2).astype(int)
    index.append(np.clip(voxel, 0, scan.array.shape[axis] - 1))
  return body.patient(scan.array[np.ix_(*index)])


def _frames(
  scan: volume.Volume, routing: RoutingMaps, k: int, dense: np.ndarray, factor: int
) -> str:
  weights = routing.weights[k].astype(np.float32) / 255  # (L, d, h, w)
  count = len(weights)
  scale = np.tensordot(np.arange(count) / (count - 1), weights, 1)
  frames = np.stack([*weights, scale, routing.entropy[k] / np.float32(255)], -1)
  known = dense & (weights.sum(0) > 0.5)
  frames, known = (x[::factor, ::factor, ::factor] for x in (frames, known))
  values = np.where(known[..., None], 1 + np.rint(254 * np.clip(frames, 0, 1)), 0)
  return encoded(
    _nifti(values.astype(np.uint8), _affine(scan, routing.cell * factor, routing.origin))
  )


def _rounded(values: np.ndarray) -> list:
  """Nested lists; None for NaN, which JSON has not."""
  if values.ndim > 1:
    return [_rounded(row) for row in values]
  return [None if np.isnan(v) else round(float(v), 4) for v in values]
