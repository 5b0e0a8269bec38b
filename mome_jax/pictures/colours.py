"""The colours of classes: the same in pictures, pages and DICOM objects."""

import colorsys
import zlib
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

# The hues of Okabe and Ito for what is seen together most; a pair shares a hue and differs in
# lightness, which colour-blind readers keep; tumours are the saturated reds and magentas.
# fmt: off
COLOURS = {
  'spleen': '#0072B2', 'right kidney': '#009E73', 'left kidney': '#8FD694',
  'gallbladder': '#F0E442', 'esophagus': '#AA4499', 'liver': '#E69F00', 'stomach': '#56B4E9',
  'aorta': '#E3342F', 'postcava': '#4C6EF5', 'portal and splenic vein': '#A78BFA',
  'pancreas': '#CC79A7', 'right adrenal gland': '#FFB07C', 'left adrenal gland': '#FFD8B1',
  'duodenum': '#44AA99', 'hepatic vessel': '#7048E8', 'right lung': '#BF5FFF',
  'left lung': '#F2D9FF', 'colon': '#B5651D', 'intestine': '#DDCC77', 'rectum': '#882255',
  'bladder': '#FFE066', 'prostate': '#B07AA1', 'left femoral head': '#9ADBC5',
  'right femoral head': '#2FB5A0', 'celiac trunk': '#FF7F7F', 'kidney tumor': '#FF00A8',
  'liver tumor': '#D5005E', 'pancreas tumor': '#FF4D00', 'hepatic vessel tumor': '#C2185B',
  'lung tumor': '#FF3B6B', 'colon tumor': '#FF6EC7', 'kidney cyst': '#00E5FF',
  'brainstem': '#3FA9F5', 'spinal cord': '#FFF04A', 'right parotid': '#00B386',
  'left parotid': '#A5E887', 'larynx': '#E88CC0', 'mandible': '#FFA51F',
}
# fmt: on

_APART = 40.0  # in CIELAB: nobody takes one for the other, side by side or not
_XYZ = np.array(
  [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
   [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip  # of linear sRGB


def lab(rgb: np.ndarray) -> np.ndarray:
  """(N, 3) sRGB in [0, 1] -> (N, 3) CIELAB under D65; distances are how different colours look."""
  linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
  xyz = linear @ _XYZ.T / _XYZ.sum(1)
  x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _candidates() -> np.ndarray:
  """(N, 3) sRGB: many hues in four strengths, none as dark as the scan behind it."""
  strengths = (0.9, 1.0), (0.5, 1.0), (0.8, 0.75), (0.3, 0.95)
  colours = [
    colorsys.hsv_to_rgb(hue / 36, *strength) for hue in range(36) for strength in strengths
  ]
  return np.array([colour for colour in colours if lab(np.array([colour]))[0, 0] > 45])


def palette(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
  """A colour for each of some classes: RGB in [0, 1], the same for equal lists in every run.

  Classes with a colour in `COLOURS` have that one. Any other has the one that follows from its
  name, unless that looks like one that is taken: then the candidate that is farthest from all.

  Args:
    names: of the classes.
  """
  colours = {name: to_rgb(COLOURS[name]) for name in names if name in COLOURS}
  for name in names:
    if name in colours:
      continue
    colour = colour_of(name)
    if colours:
      taken = lab(np.array(list(colours.values())))
      if _nearest(lab(np.array([colour])), taken)[0] < _APART:
        colour = tuple(_CANDIDATES[_nearest(lab(_CANDIDATES), taken).argmax()].tolist())
    colours[name] = colour
  return {name: colours[name] for name in names}


def colour_of(name: str) -> tuple[float, float, float]:
  """The colour of a class without regard to others: RGB in [0, 1]."""
  if name in COLOURS:
    return to_rgb(COLOURS[name])
  code = zlib.crc32(name.encode())
  saturation, value = 0.5 + 0.2 * (code // 997 % 3), 0.8 + 0.2 * (code // 2991 % 2)
  return colorsys.hsv_to_rgb(code % 997 / 997, saturation, value)


def _nearest(colours: np.ndarray, taken: np.ndarray) -> np.ndarray:
  """(N, 3), (M, 3) CIELAB -> (N,): how far each colour is from the nearest taken one."""
  return np.linalg.norm(colours[:, None] - taken, axis=-1).min(1)


_CANDIDATES = _candidates()
