"""Which masks cannot be what they are called."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mome_jax.plausibility import measures, reasons
from mome_jax.plausibility.measures import Look, Scene
from mome_jax.plausibility.record import ClassRecord, Record

OUTSIDE = 'outside the field of view'
FOREIGN = 'the scan does not look like those the model was trained on'
_SHOWN = 3  # reasons of a verdict


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is to be thought of one mask.

  Attributes:
    plausible: None where the record does not know the class or there is no mask.
    reasons: why it is not plausible, the weightiest first.
    cut: whether it reaches the end of the field of view; None without a mask.
    absent: whether the mask counts as none: its class cannot be in the field of view, or it looks
      like no such organ in a foreign scan.
  """

  plausible: bool | None = None
  reasons: tuple[str, ...] = ()
  cut: bool | None = None
  absent: bool = False


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What is to be thought of the masks in a scan.

  Attributes:
    verdicts: by class.
    foreign: whether the scan does not look like those that the model was trained on.
    reasons: how it differs from them.
  """

  verdicts: Mapping[str, Verdict]
  foreign: bool
  reasons: tuple[str, ...] = ()


def judge(looks: Mapping[str, Look], scene: Scene, record: Record) -> Judgement:
  """Compares masks with the training labels, each in itself and in its place among the others.

  A mask is implausible where a measure lies farther outside its range than `record.tolerance`, or
  where it contradicts the places of the others: of classes that disagree, the one that disagrees
  most is taken out until the others agree. A scan is foreign where its own measures are out of
  range and at most half of the organs that training scans show have a plausible mask, or where none
  of several masks is plausible: then none is.

  Args:
    looks: of all trained classes that have voxels, whatever was asked for.
    scene: the scan.
    record: of the model.
  """
  known = {name: look for name, look in looks.items() if name in record.classes}
  why = {name: misfits(look, record.classes[name], record) for name, look in known.items()}
  agreed = {name: look for name, look in known.items() if not why[name]}
  wrong_place = misplaced(agreed, record)
  agreed = {name: look for name, look in agreed.items() if name not in wrong_place}
  unlike = _unlike(scene, record)
  usual = [name for name, entry in record.classes.items() if entry.usual]
  few = 2 * sum(name in agreed for name in usual) <= len(usual)
  foreign = bool(unlike and few) or (len(known) > 1 and not agreed)
  verdicts = {name: Verdict(cut=look.cut) for name, look in looks.items()}
  for name, look in known.items():
    wrong = [*why[name][:_SHOWN], *wrong_place.get(name, ())]
    beyond = bool(wrong) and _beyond(name, agreed, scene, record)
    told = ([OUTSIDE] if beyond else [FOREIGN] if foreign else []) + wrong
    absent = beyond or (foreign and bool(why[name]))
    verdicts[name] = Verdict(not told, tuple(told), look.cut, absent)
  unlike = unlike[:_SHOWN] or ['none of the masks is plausible']
  return Judgement(verdicts, foreign, tuple(unlike) if foreign else ())


def misfits(look: Look, known: ClassRecord, record: Record) -> list[str]:
  """What is wrong with a mask in itself, the worst first."""
  excess = excesses(look, known)
  worst = sorted(excess, key=lambda name: -abs(excess[name]))
  return [
    reasons.of_mask(name, look.values[name], known.values[name], excess[name])
    for name in worst
    if abs(excess[name]) > record.tolerance
  ]


def excesses(look: Look, known: ClassRecord) -> dict[str, float]:
  """How far each measure of a mask lies outside its range; see `Range.excess`."""
  excess = {name: known.values[name].excess(name, look.values[name]) for name in measures.MASK}
  if known.partial:
    excess['volume_ml'] = 0.0
  elif look.cut:
    excess['volume_ml'] = max(0.0, excess['volume_ml'])
  return excess


def offset_excess(
  name: str, look: Look, other: str, seen: Look, record: Record
) -> tuple[float, str]:
  """How far two classes lie from where they should from each other, and a phrase for it."""
  spans = record.classes[name].offsets.get(other, ())
  offset = look.offset(seen)
  # Where the field of view ends in one of them, nobody knows the height of its middle.
  axes = [a for a in range(len(spans)) if a < 2 or not (look.cut or seen.cut)]
  excess = [spans[a].excess('mm', float(offset[a])) for a in axes]
  if not excess:
    return 0.0, ''
  axis = axes[int(np.abs(excess).argmax())]
  text = reasons.of_offset(other, axis, -float(offset[axis]), spans[axis])
  return float(np.abs(excess).max()), text


def misplaced(looks: Mapping[str, Look], record: Record) -> dict[str, list[str]]:
  """The classes to take out until the others agree where they are, each with the reason.

  The one that contradicts most others goes; of equals, the one farther outside all ranges.
  """
  left: dict[str, Look] = dict(looks)
  removed: dict[str, list[str]] = {}
  while left:
    apart = {
      name: [
        offset_excess(name, left[name], other, left[other], record)
        for other in left
        if other != name
      ]
      for name in left
    }
    wrong = {n: sum(e > record.tolerance for e, _ in told) for n, told in apart.items()}
    worst = max(left, key=lambda n: (wrong[n], sum(e for e, _ in apart[n])))
    if not wrong[worst]:
      break
    removed[worst] = [max(apart[worst])[1]]
    del left[worst]
  return removed


def _unlike(scene: Scene, record: Record) -> list[str]:
  """How a scan differs from those of training, the worst first."""
  if scene.values is None:
    return ['no patient is to be seen in it']
  values = scene.values
  excess = {name: span.excess(name, values[name]) for name, span in record.scan.items()}
  worst = sorted(excess, key=lambda name: -abs(excess[name]))
  return [
    reasons.of_scan(name, values[name], record.scan[name], excess[name])
    for name in worst
    if abs(excess[name]) > 1
  ]


def _beyond(name: str, agreed: Mapping[str, Look], scene: Scene, record: Record) -> bool:
  """Whether the plausible classes say that this one lies outside the field of view."""
  offsets = {
    other: span
    for other, look in agreed.items()
    if len(span := record.classes[other].offsets.get(name, ())) == 3 and not look.cut
  }
  for axis in range(3):
    ranges = [(agreed[other].centre[axis], span[axis]) for other, span in offsets.items()]
    if not ranges:
      return False
    low = np.median([centre + span.low for centre, span in ranges])
    high = np.median([centre + span.high for centre, span in ranges])
    if high < scene.seen[axis][0] or low > scene.seen[axis][1]:
      return True
  return False
