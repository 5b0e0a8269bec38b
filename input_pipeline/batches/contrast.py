"""Contrast phases: organs of a patch are re-toned together, as after an injection.

Typical HU, rounded, at the four phases of an abdominal protocol (none, some 35 s, 70 s, 5 min):
the course of vessels and organs after K. T. Bae, "Intravenous contrast medium administration and
scan timing at CT", Radiology 256, 2010, 32-61 (aorta about 300 HU in the arterial phase, liver 50
HU above its unenhanced value in the portal venous one, vessels alike when delayed); unenhanced
liver 58, as in Int. J. Legal Med. 133, 2019, 1861-1867, about 10 above the spleen (Piekarski et
al., Radiology 137, 1980, 727-729); kidneys 30 to 50 unenhanced, cortex 195 to 217 more from 10 to
30 s after the aorta's rise, medulla up to 145 more (Eur. J. Radiol. 63, 2007, 420-426), of which
the table has means over the organ. Patients differ: all enhancement is multiplied by a dose.

What nobody labelled cannot be re-toned. A bright aorta beside a dark unlabelled spleen is a scan
that does not exist, and would teach that what does not match is what was asked for. So a phase is
only simulated where all organs that show it are labelled over the whole scan, the heart too where
lung is in the patch. Elsewhere each labelled organ is shifted by what patients differ in one phase.
Branches of vessels stay as they are: that is why a phase should be one patch in three or four.
"""

import dataclasses
import types
from collections.abc import Collection, Mapping

import numpy as np

from input_pipeline.anatomy import Template
from input_pipeline.ct import body

# HU without contrast, arterial, portal venous, delayed.
PHASES: Mapping[str, tuple[float, float, float, float]] = types.MappingProxyType(
  {
    'aorta': (45, 300, 150, 100),
    'celiac trunk': (45, 290, 150, 100),
    'heart': (45, 220, 150, 100),
    'postcava': (42, 90, 140, 100),
    'portal and splenic vein': (42, 130, 170, 105),
    'hepatic vessel': (48, 85, 160, 105),
    'liver': (58, 70, 110, 90),
    'spleen': (48, 120, 120, 90),
    'right kidney': (35, 150, 180, 150),
    'left kidney': (35, 150, 180, 150),
    'pancreas': (42, 100, 95, 70),
    'right adrenal gland': (30, 70, 75, 60),
    'left adrenal gland': (30, 70, 75, 60),
  }
)
NAMES = ('native', 'arterial', 'portal venous', 'delayed')
# Filled with water or oral contrast medium, whatever the phase.
HOLLOW = ('stomach', 'duodenum', 'intestine', 'colon', 'rectum')
_STAYS = ('kidney cyst',)  # the one structure within these organs that no contrast reaches
_NEEDED = frozenset(
  {'aorta', 'postcava', 'portal and splenic vein', 'liver', 'spleen', 'right kidney', 'left kidney'}
)
_WATER, _ORAL = (0.0, 25.0), (120.0, 320.0)  # HU
_FAT, _GAS = -110.0, -150.0  # HU between which a voxel of bowel holds less and less liquid
_ALIKE = 40.0  # HU by which an organ differs little from what is beside it
_SOFT = 0.0  # HU above which a voxel holds little else than tissue
_ENHANCED = 15.0  # HU above its native median from which an organ has contrast medium
# Of normal noise a quarter deviates by less than 0.32 sigma; times this makes 2 sigma. HU.
_NOISE, _MOST_NOISE = 6.3, 40.0
_FEWEST = 8  # voxels that tell the HU of an organ
_LUNG_HU, _LUNG_SHARE = (-920, -600), 0.02  # of a patch that lies in the chest


def organ_table(template: Template) -> np.ndarray:
  """Label codes -> number of the organ they are re-toned with.

  A tumor goes with its organ, so that it stays lighter or darker than it by as much.

  Args:
    template: of the codes.

  Returns:
    (256,) uint8; 0 is none, n the n-th name of PHASES and HOLLOW.
  """
  known = set(template.names())
  numbers = {name: n for n, name in enumerate((*PHASES, *HOLLOW), 1) if name in known}
  table = np.zeros(256, np.uint8)
  codes = template.code_table(list(numbers))
  # What a vessel within an organ is, the vessel says: smaller classes come last.
  for column in np.argsort(-codes.sum(0), kind='stable'):
    table[codes[:, column]] = list(numbers.values())[column]
  for name in set(_STAYS) & known:
    table[template.code_table([name])[:, 0]] = 0
  return table


def is_complete(image: np.ndarray, known: Collection[str]) -> bool:
  """Whether all that a phase would change in a patch is labelled.

  Args:
    image: (D, H, W) HU.
    known: names of the classes that are labelled over the whole scan, or cannot be in it.
  """
  if not _NEEDED.issubset(known):
    return False
  some = image[::2, ::2, ::2]
  in_chest = ((some > _LUNG_HU[0]) & (some < _LUNG_HU[1])).mean() > _LUNG_SHARE
  return not in_chest or 'heart' in known


def change_phase(
  rng: np.random.Generator,
  image: np.ndarray,
  label: np.ndarray,
  table: np.ndarray,
  known: Collection[str],
  config: Mapping,
) -> np.ndarray:
  """Another contrast phase, or where labels do not suffice for one, another patient's in it.

  Args:
    rng: source of randomness.
    image: (D, H, W) float32 HU; left as it is.
    label: (D, H, W) uint8 codes.
    table: of `organ_table`.
    known: of `is_complete`.
    config: of `augment.complete`.

  Returns:
    (D, H, W) float32 HU.
  """
  time, dose = rng.uniform(*config['contrast_phase']), rng.uniform(*config['contrast_dose'])
  spread = config['contrast_spread'] * rng.standard_normal(len(PHASES))
  names = list(PHASES)
  spread[names.index('left kidney')] = spread[names.index('right kidney')]
  complete = is_complete(image, known)
  aims = {}
  for n, name in enumerate(PHASES, 1):
    if name in known:
      native = PHASES[name][0] + spread[n - 1]
      hu = native + dose * (np.interp(time, range(1, 5), PHASES[name]) - PHASES[name][0])
      aims[n] = _Aim(hu, native) if complete else _Aim(added=spread[n - 1])
  return _retone(image, table[label], aims)


def change_content(
  rng: np.random.Generator,
  image: np.ndarray,
  label: np.ndarray,
  table: np.ndarray,
  known: Collection[str],
) -> np.ndarray:
  """Stomach and bowel filled with water, or with oral contrast medium; gas stays.

  Loops of one patient are filled differently, so that this contradicts nothing that is unlabelled.

  Args:
    rng: source of randomness.
    image: (D, H, W) float32 HU; left as it is.
    label: (D, H, W) uint8 codes.
    table: of `organ_table`.
    known: names of the classes that are labelled over the whole scan.

  Returns:
    (D, H, W) float32 HU.
  """
  filling = rng.uniform(*(_ORAL if rng.random() < 0.5 else _WATER))
  filled = rng.random(len(HOLLOW)) < 0.7
  spread = 10 * rng.standard_normal(len(HOLLOW))
  aims = {
    n: filling + spread[i]
    for i, (n, name) in enumerate(enumerate(HOLLOW, len(PHASES) + 1))
    if filled[i] and name in known
  }
  return _fill(image, table[label], aims)


def _fill(image: np.ndarray, organ: np.ndarray, aims: Mapping[int, float]) -> np.ndarray:
  """Brings the content of hollow organs to the HU of `aims`; walls and gas stay."""
  part = _part(organ, aims)
  if part is None:
    return image
  box, organ = part
  hu = image[box]
  inner = _blur((organ > 0).astype(np.float32))
  shift = np.zeros(256, np.float32)
  for number, aim in aims.items():
    content = hu[(organ == number) & (hu > _FAT) & (inner > 0.999)]
    if len(content) >= _FEWEST:
      shift[number] = aim - np.median(content)
  if not shift.any():
    return image
  liquid = np.clip((hu - _GAS) / (_FAT - _GAS), 0, 1)
  changed = image.copy()
  changed[box] += shift[organ] * np.maximum(2 * inner - 1, 0) * liquid
  return changed


@dataclasses.dataclass(frozen=True)
class _Aim:
  """What an organ is to become.

  Attributes:
    hu: of its median; None: it stays.
    native: HU without contrast, below which nothing has any to lose.
    added: HU, to the median that stays.
  """

  hu: float | None = None
  native: float | None = None
  added: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Tones:
  """How the voxels of each number change; arrays (256,) float32, HU but for `lost`.

  Attributes:
    median: of the organ.
    shift: added to all of it.
    lost: part of its enhancement that is taken away.
    native: HU without enhancement.
    bright: HU above which what lies beside the organ is something else, such as bone.
  """

  median: np.ndarray
  shift: np.ndarray
  lost: np.ndarray
  native: np.ndarray
  bright: np.ndarray


def _retone(image: np.ndarray, organ: np.ndarray, aims: Mapping[int, _Aim]) -> np.ndarray:
  """Changes the HU of organs: their noise stays, and their edges mix with what is beside them.

  Args:
    image: (D, H, W) float32 HU.
    organ: (D, H, W) uint8 numbers.
    aims: of the numbers to change.
  """
  part = _part(organ, aims)
  if part is None:
    return image
  box, organ = part
  hu = image[box]
  inner = _blur((organ > 0).astype(np.float32))  # at a flat edge 0.75 inside, 0.25 outside
  tissue = ((organ > 0) & (hu > _SOFT)).astype(np.float32)
  around = _blur(hu * tissue) / np.maximum(_blur(tissue), 1e-3)
  noise = _noise((hu - around)[inner > 0.999])
  tones = _tones(hu, organ, inner > 0.999, aims, noise)
  grown = _grow(organ)
  change = np.zeros_like(hu)
  lowest = _lowest(hu) + noise
  if tones.shift.any():
    change += _shifted(hu, organ, grown, lowest, inner, tones)
  if tones.lost.any():
    change -= _lost(hu - np.clip(hu - around, -noise, noise), organ, grown, lowest, tones)
  changed = image.copy()
  changed[box] += change
  return changed


def _part(
  organ: np.ndarray, numbers: Collection[int]
) -> tuple[tuple[slice, ...], np.ndarray] | None:
  """A box around some organs with two voxels of margin, and their numbers in it alone."""
  chosen = np.zeros(256, bool)
  chosen[list(numbers)] = True
  mask = chosen[organ]
  if not mask.any():
    return None
  box = body.box(mask, (2, 2, 2))
  return box, np.where(mask[*box], organ[*box], np.uint8(0))


def _noise(deviations: np.ndarray) -> float:
  """HU that noise seldom exceeds, from deviations from the neighbours, away from edges."""
  if len(deviations) < _FEWEST:
    return 0.0
  return min(_NOISE * float(np.percentile(np.abs(deviations), 25)), _MOST_NOISE)


def _tones(
  hu: np.ndarray, organ: np.ndarray, inner: np.ndarray, aims: Mapping[int, _Aim], noise: float
) -> _Tones:
  """From what the organs are, away from edges where they are large enough, to what they become."""
  rows = np.zeros((256, 5), np.float32)
  voxels = np.flatnonzero(organ)
  numbers, values, inner = (part.ravel()[voxels] for part in (organ, hu, inner))
  for number, aim in aims.items():
    chosen = numbers == number
    if (chosen & inner).sum() >= _FEWEST:
      chosen &= inner
    if chosen.sum() < _FEWEST:
      continue
    median = float(np.median(values[chosen]))
    shift = aim.added if aim.hu is None else aim.hu - median
    enhancement = 0 if aim.native is None else median - aim.native
    if shift < 0 and enhancement > _ENHANCED:
      bright = median + noise + 0.25 * enhancement
      rows[number] = median, 0, -shift / enhancement, aim.native, bright
    else:
      rows[number] = median, shift, 0, 0, 0
  return _Tones(*rows.T)


def _shifted(
  hu: np.ndarray,
  organ: np.ndarray,
  grown: np.ndarray,
  lowest: np.ndarray,
  inner: np.ndarray,
  tones: _Tones,
) -> np.ndarray:
  """What is added, (D, H, W) float32 HU: as much as a voxel holds of the organ.

  Beside fat or lung its HU tell how much that is; beside tissue alike, its place does.
  """
  inside = organ > 0
  edges = np.where(inside, 0.4 + 0.6 * inner, 0.8 * inner)
  median = tones.median[grown]
  depth = np.maximum(median - lowest, 1)
  told = np.clip((depth - _ALIKE) / _ALIKE, 0, 1)
  held = told * np.clip((hu - lowest) / depth, 0, 1) + (1 - told) * edges
  held = np.where(inside, held, np.minimum(held, 0.3))
  # Two organs side by side: no edge sharper than a scanner's.
  share = _blur((grown > 0).astype(np.float32))
  shift = _blur(tones.shift[grown]) / np.maximum(share, 1e-3)
  return held * shift


def _lost(
  hu: np.ndarray, organ: np.ndarray, grown: np.ndarray, lowest: np.ndarray, tones: _Tones
) -> np.ndarray:
  """Enhancement that is taken away, (D, H, W) float32 HU.

  All that is brighter than the organ without contrast loses the same part: muscle and blood of the
  heart, cortex and medulla, and a rim of a vessel that its label misses. Where a voxel holds fat or
  lung as well, it has the less to lose.
  """
  native, median = tones.native[grown], tones.median[grown]
  base = np.minimum(lowest, native)
  enhanced = (hu - base) * (median - native) / np.maximum(median - base, 1)
  beside = np.where(hu < tones.bright[grown], 0.95, 0)
  return np.where(organ > 0, 1, beside) * tones.lost[grown] * np.maximum(enhanced, 0)


def _lowest(hu: np.ndarray) -> np.ndarray:
  """Lowest of each voxel and its 26 neighbours."""
  for axis in range(3):
    line = np.moveaxis(hu, axis, 0)
    low = line.copy()
    np.minimum(low[1:], line[:-1], out=low[1:])
    np.minimum(low[:-1], line[1:], out=low[:-1])
    hu = np.moveaxis(low, 0, axis)
  return hu


def _grow(organ: np.ndarray) -> np.ndarray:
  """Numbers of the voxels beside those that have one, too."""
  grown = organ
  for axis in range(3):
    line = np.moveaxis(grown, axis, 0)
    more = line.copy()
    more[1:] = np.where(more[1:] == 0, line[:-1], more[1:])
    more[:-1] = np.where(more[:-1] == 0, line[1:], more[:-1])
    grown = np.moveaxis(more, 0, axis)
  return grown


def _blur(array: np.ndarray) -> np.ndarray:
  """Weights 1/4, 1/2, 1/4 along each axis; the ends are repeated."""
  for axis in range(3):
    line = np.moveaxis(array, axis, 0)
    smooth = 0.5 * line
    smooth[1:] += 0.25 * line[:-1]
    smooth[:-1] += 0.25 * line[1:]
    smooth[0] += 0.25 * line[0]
    smooth[-1] += 0.25 * line[-1]
    array = np.moveaxis(smooth, 0, axis)
  return array
