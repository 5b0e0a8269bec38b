"""The rules: what a fingerprint and a budget of voxels make of each value, and why.

Where nnU-Net has a rule it is taken (Isensee et al., "nnU-Net", Nature Methods 18, 2021: the
supplement's rule-based parameters); where this network differs from nnU-Net's, so does the rule,
and its reason says so.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import TEMPLATE
from mome_jax.inference import postprocess
from mome_jax.plan.cohort import Cohort

ANISOTROPIC = 3.0  # nnU-Net: coarse axis over the others, in mm and in voxels
RATIO = 2.0  # of our grid: the network pools all axes alike
NATIVE_PERCENTILE = 10  # nnU-Net: of the coarse axis of an anisotropic cohort
COVER = 0.05  # of the median scan, that a patch sees at least
COARSENING = 1.03  # nnU-Net: a step towards its low-resolution network
FEW_VOXELS = 100  # of the smallest class, which coarsening leaves
CLIP = (0.5, 99.5)  # nnU-Net: HU percentiles of the foreground
TISSUE = (-175.0, 250.0)  # HU; of the CLIP-Driven Universal Model
NARROW = 600.0  # HU; a wider window leaves soft tissues a few grey values
WIDE = (-1000.0, 400.0)  # HU; of the demo: air to cancellous bone
_LEVEL = 4 / 3  # longest edge of a patch over the shortest, in mm
LEAST_EDGE = 4  # nnU-Net: voxels of a patch at the coarsest scale
PATCHES = 500_000  # nnU-Net: 1000 epochs of 250 steps of 2 patches
# Measured: openkbp_cpu, steps and voxels of a patch. A longer run puts a third of what it has more
# (in doublings) into the patch and two thirds into steps, which meets nnU-Net's 250,000 steps of
# two patches of 128^3 within a factor of two.
ANCHOR = (5600, 40**3)
SPARSE = 0.02  # share of the scan that is some class, below which patches look for classes
WHOLE = 0.95  # of the scans in which an organ is one piece


@dataclasses.dataclass(frozen=True)
class Choice:
  """A value of the config and its reason: one line."""

  name: str
  value: Any
  why: str


@dataclasses.dataclass(frozen=True)
class Layout:
  """Grid and patch: what the memory and the time decide about.

  Attributes:
    spacing: (3,) mm.
    patch: (3,) voxels.
    batch: patches of a step on all devices.
    at_cap: whether the patch holds the median scan.
    why_spacing, why_patch, why_batch: one line each.
  """

  spacing: tuple[float, ...]
  patch: tuple[int, ...]
  batch: int
  at_cap: bool
  why_spacing: str
  why_patch: str
  why_batch: str

  @property
  def voxels(self) -> int:
    """Of one patch."""
    return math.prod(self.patch)


@dataclasses.dataclass(frozen=True)
class Room:
  """How much a step may hold.

  Attributes:
    voxels: of all patches of one device, at most.
    devices: that share a batch.
    by_time: whether time, and not memory, is what bounds it.
  """

  voxels: float
  devices: int
  by_time: bool


def native_spacing(cohort: Cohort) -> tuple[tuple[float, ...], str]:
  """nnU-Net's target spacing, with axes at most RATIO apart."""
  median = np.median(cohort.spacings, 0)
  sizes = np.median(cohort.extents / cohort.spacings, 0)
  coarse = int(median.argmax())
  rest = [axis for axis in range(3) if axis != coarse]
  target, why = median.copy(), f'median of {len(cohort.cases)} scans'
  thick = median[coarse] > ANISOTROPIC * median[rest].max()
  if thick and sizes[coarse] * ANISOTROPIC < sizes[rest].min():
    tenth = float(np.percentile(cohort.spacings[:, coarse], NATIVE_PERCENTILE))
    target[coarse] = max(tenth, median[rest].max())
    why += (
      f', and along the thick slices (over {ANISOTROPIC:g} x) the {NATIVE_PERCENTILE}th percentile'
    )
  if target.max() > RATIO * target.min():
    was = _mm(target)
    target = _within(target, RATIO)
    why += (
      f' ({was}); nnU-Net would pool its fine axes alone, this network pools all alike: axes at '
      f'most {RATIO:g} x apart, as many voxels'
    )
  return _rounded(target), why


def _within(spacing: np.ndarray, ratio: float) -> np.ndarray:
  """The spacing of the same voxel volume whose axes differ by at most `ratio`."""
  low, high = spacing.min(), spacing.max()
  for _ in range(60):  # bisection for the finest axis: the volume grows with it
    middle = math.sqrt(low * high)
    if np.clip(spacing, middle, ratio * middle).prod() < spacing.prod():
      low = middle
    else:
      high = middle
  return np.clip(spacing, high, ratio * high)


def layout(
  cohort: Cohort, room: Room, *, stride: int, spacing: Sequence[float] | None = None, why: str = ''
) -> Layout:
  """Spacing, patch and batch for the room there is.

  Args:
    cohort: the fingerprint.
    room: for patches.
    stride: of the network's coarsest scale; edges are multiples of it.
    spacing: (3,) mm where it is given; None: by the rules.
    why: its reason.
  """
  least = 1 if room.by_time or room.devices > 1 else 2
  voxels = room.voxels / least
  if spacing is None:
    mm, why = native_spacing(cohort)
    mm, coarser = _coarsen(cohort, mm, voxels, stride)
    why += coarser
  else:
    mm = tuple(float(x) for x in spacing)
  patch, at_cap = patch_of(cohort, mm, voxels, stride)
  size = ' x '.join(f'{n * s:.0f}' for n, s in zip(patch, mm, strict=True))
  seen = covered(cohort, mm, patch)
  bottom = ' x '.join(str(n // stride) for n in patch)
  why_patch = (
    f'{size} mm, {100 * seen:.0f} % of the median scan; {bottom} voxels at the coarsest scale; '
  )
  if at_cap:
    why_patch += 'no larger, as it holds the median scan'
  elif room.by_time:
    why_patch += 'as large as leaves the time enough steps'
  else:
    why_patch += 'as large as the memory holds, near-cubic in mm as in nnU-Net'
  per_device, why_batch = _batch(cohort, mm, patch, room, least)
  return Layout(mm, patch, per_device * room.devices, at_cap, why, why_patch, why_batch)


def _coarsen(
  cohort: Cohort, spacing: tuple[float, ...], voxels: float, stride: int
) -> tuple[tuple[float, ...], str]:
  """Coarser by COARSENING until a patch sees enough, as long as the smallest class is there."""
  name, ml = min(
    ((name, float(np.median(cohort.volumes(name)))) for name in cohort.classes),
    key=lambda pair: pair[1],
  )
  mm = tuple(spacing)
  while True:
    patch, at_cap = patch_of(cohort, mm, voxels, stride)
    if at_cap or covered(cohort, mm, patch) >= COVER:
      reason = f'a patch sees {100 * COVER:.0f} % of a scan'
      break
    coarser = tuple(COARSENING * edge for edge in mm)
    if 1000 * ml / math.prod(coarser) < FEW_VOXELS:
      reason = f'{name} (median {ml:.2g} ml) keeps {FEW_VOXELS} voxels'
      break
    mm = coarser
  if mm == spacing:
    return spacing, ''
  return _rounded(mm), (
    f'; {mm[0] / spacing[0]:.2g} x coarser, until {reason} (nnU-Net trains a second network so)'
  )


def covered(cohort: Cohort, spacing: Sequence[float], patch: Sequence[int]) -> float:
  """The share of the median scan that a patch sees."""
  extent = np.median(cohort.extents, 0)
  return float(np.minimum(np.array(patch) * spacing / extent, 1).prod())


def patch_of(
  cohort: Cohort, spacing: Sequence[float], voxels: float, stride: int
) -> tuple[tuple[int, ...], bool]:
  """The patch nearest to a cube in mm, of at most so many voxels, no larger than the median scan.

  Returns:
    (3,) multiples of `stride`, at least LEAST_EDGE of them along each axis where the scan has as
    many; and whether no axis could grow for the scan's size.
  """
  scan = np.median(cohort.extents, 0) / np.array(spacing)
  cap = np.maximum(np.ceil(scan / stride - 1e-6), 1).astype(int) * stride
  patch = np.minimum(cap, LEAST_EDGE * stride)
  while True:
    edges = patch * np.array(spacing)
    free = [axis for axis in np.argsort(edges, kind='stable') if patch[axis] < cap[axis]]
    for axis in free:
      grown = patch + stride * (np.arange(3) == axis)
      level = axis == free[0] or grown[axis] * spacing[axis] <= _LEVEL * edges[free[0]]
      if level and grown.prod() <= voxels:
        patch = grown
        break
    else:
      return tuple(int(n) for n in patch), not free


def _batch(
  cohort: Cohort, spacing: Sequence[float], patch: Sequence[int], room: Room, least: int
) -> tuple[int, str]:
  """Patches of one device, and why."""
  size = math.prod(patch)
  total = cohort.total * np.median(cohort.extents.prod(1)) / math.prod(spacing)
  bound = max(least, int(0.05 * total / size / room.devices))
  batch = max(least, min(bound, int(room.voxels / size)))
  shared = f', on each of {room.devices} devices' if room.devices > 1 else ''
  if batch == 1 and room.by_time:
    return 1, 'more steps instead: no layer normalises over the batch, unlike for nnU-Net (2)'
  if batch == 1:
    return 1, f'1{shared}: together at least 2, as in nnU-Net'
  if batch == bound > least:
    return batch, f'a step sees at most 5 % of the cohort, as in nnU-Net{shared}'
  what = 'time' if room.by_time else 'memory'
  reason = 'at least 2, as in nnU-Net' if batch == 2 else f'what the {what} holds beside the patch'
  return batch, reason + shared


def windows(cohort: Cohort) -> Choice:
  """HU windows: nnU-Net's clipping, and what it would lose."""
  low, high = cohort.hu(cohort.classes, CLIP)
  clips = f'{CLIP[0]:g} to {CLIP[1]:g} %, where nnU-Net clips'
  known = f'classes have {low:.0f} to {high:.0f} HU ({clips})'
  wide = (WIDE[0], max(WIDE[1], math.ceil(high / 100) * 100.0))
  if high - low <= NARROW:
    around = 25 if low == high else 0  # drawn organs, or what was painted over
    tissue = (math.floor(low / 25) * 25.0 - around, math.ceil(high / 25) * 25.0 + around)
    return Choice(
      'data.windows', (tissue, wide), f'{known}; a second channel shows lung and bone around them'
    )
  why = f'{known}: a window so wide flattens soft tissue, which gets a channel of its own'
  return Choice('data.windows', (TISSUE, wide), why)


def foreground(cohort: Cohort) -> Choice:
  """Share of patches around a class."""
  share = cohort.share()
  value = 0.8 if share < SPARSE else 0.67
  return Choice(
    'data.foreground', value,
    f'classes fill {100 * share:.2g} % of a scan, and each is as likely to be drawn whatever its '
    'size; nnU-Net takes 0.33',
  )  # fmt: skip


def balance(cohort: Cohort) -> Choice:
  """How often each dataset is drawn."""
  counts = cohort.families
  if len(set(counts.values())) > 1:
    told = ', '.join(f'{name} {n}' for name, n in sorted(counts.items()))
    return Choice(
      'data.balance', 'classes',
      f'datasets label different numbers of classes ({told}): none is rare for that',
    )  # fmt: skip
  if len(counts) == 1:
    return Choice('data.balance', 'classes', 'one dataset, nothing to balance')
  return Choice('data.balance', 'sources', 'every dataset labels as many classes')


def steps(batch: int, whole: float | None, step: float | None, *, timed: bool) -> Choice:
  """How many steps.

  Args:
    batch: patches of a step.
    whole: seconds of the training, or None where nothing bounds them.
    step: seconds of one step, or None where nothing tells.
    timed: whether it was, or else follows from its size.
  """
  if whole is None or step is None:
    number = _round_number(PATCHES / batch)
    why = f"nnU-Net's {PATCHES:,} patches, {batch} a step"
    return Choice('train.steps', number, why)
  number = max(_round_number(whole / step), 1)
  how = 'as timed here' if timed else 'by its size: too little memory is free here to time it'
  why = f'{whole / 3600:.2g} h at {step:.3g} s a step, {how}'
  return Choice('train.steps', number, why)


def room_by_time(voxels: float) -> float:
  """Voxels of a step, where the whole time holds so many: see ANCHOR."""
  steps, patch = ANCHOR
  return patch * (voxels / (steps * patch)) ** (1 / 3)


def schedule(number: int) -> list[Choice]:
  """What follows from the number of steps."""
  decay = min(max(1 - 20 / number, 0.99), 0.999)
  every = max(_round_number(number / 20), 1)
  warmup = max(min(max(number // 100, 50), 1000, number // 2), 1)
  return [
    Choice('train.warmup_steps', warmup, 'a hundredth, from 50 to 1000, as in demo and base'),
    Choice('train.ema_decay', round(decay, 4), 'spans a twentieth of the steps'),
    Choice('train.checkpoint_every', every, 'twenty times in a run'),
    Choice('train.log_every', max(min(50, number // 50), 1), 'at least fifty points on the curve'),
  ]  # fmt: skip


def tidy(cohort: Cohort) -> Choice:
  """Rules for predicted masks, by the organs that they change: no class that came with the data."""
  organs = [
    name
    for name in cohort.classes
    if name in TEMPLATE.names()
    and not TEMPLATE.get(name).parents
    and name not in postprocess.BRANCHED
  ]
  broken = [name for name in organs if cohort.whole(name) < WHOLE]
  often = f'{100 * WHOLE:.0f} % of the scans'
  name = 'evaluation.postprocess'
  if not organs:
    return Choice(name, (), 'no organ is among the classes')
  if broken:
    first = f'{broken[0]} only in {100 * cohort.whole(broken[0]):.0f} %'
    return Choice(name, (), f'not every organ is one piece in {often}: {first}')
  return Choice(name, ('largest',), f'every organ is one piece in {often}')


def _rounded(spacing: Sequence[float] | np.ndarray) -> tuple[float, ...]:
  """Two digits: what a command line should hold."""
  return tuple(float(f'{mm:.2g}') for mm in spacing)


def _round_number(number: float) -> int:
  """Two digits."""
  return int(float(f'{number:.2g}'))


def _mm(spacing: Sequence[float] | np.ndarray) -> str:
  return ' x '.join(f'{mm:.3g}' for mm in spacing)
