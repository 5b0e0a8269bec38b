"""Which masks cannot be what they are called."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mome_jax.plausibility import measures, reasons
from mome_jax.plausibility.measures import Look, Scene
from mome_jax.plausibility.record import LEAST_CASES, ClassRecord, Range, Record

OUTSIDE = 'outside the field of view'
FOREIGN = 'the scan does not look like those the model was trained on'
ELSEWHERE = 'scans of this part of the body do not show it'
UNSEEN = 'in training, scans of other parts of the body showed it, and it looked otherwise'
SPECK = 'too little of it to be measured, or none of it in the patient'
_SHOWN = 3  # reasons of a verdict
# What the end of a scan changes least: the density of a mask, and what lies against it.
_OF_A_PART = ('mean_hu', 'hu_sd', *(m for m in measures.SURROUNDINGS if m.endswith('_0_10_mm')))
_UNLIKE = 1.0  # of a scan's measures, from which on it is not like those of training


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is to be thought of one mask.

  Attributes:
    plausible: None where there is no mask, or the record does not know its class and the scan is
      not foreign.
    reasons: why it is not plausible, the weightiest first.
    cut: whether it reaches the end of the field of view; None without a mask.
    absent: whether the mask counts as none: its class cannot be in the field of view or in this
      part of the body, or it looks like no such organ in a foreign scan, or in one of a part of the
      body in which training did not show it.
    alien: whether an absent mask is nothing of the kind even if the scan shows a part of it only.
    removed_ml: volume of a mask that was there and is taken away.
  """

  plausible: bool | None = None
  reasons: tuple[str, ...] = ()
  cut: bool | None = None
  absent: bool = False
  alien: bool = False
  removed_ml: float = 0.0


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


@dataclasses.dataclass(frozen=True)
class Offset:
  """How far two classes of a scan lie from where they should from each other.

  Attributes:
    excess: the largest along an axis.
    axis: that one.
    mm: of the other class from this one along it.
  """

  excess: float
  axis: int
  mm: float


@dataclasses.dataclass(frozen=True)
class Deviations:
  """How far a scan and the masks in it lie outside the ranges of a record, in `Range.excess`.

  Attributes:
    scan: by measure of `measures.SCAN`; None where no patient is to be seen.
    inside: by class and measure of `measures.MASK`.
    apart: by class and other class, of those whose offsets are known.
  """

  scan: Mapping[str, float] | None
  inside: Mapping[str, Mapping[str, float]]
  apart: Mapping[str, Mapping[str, Offset]]


@dataclasses.dataclass(frozen=True)
class Outliers:
  """The masks of a scan that are not plausible, and why.

  Attributes:
    misfits: classes whose mask is wrong in itself.
    misplaced: class -> the other one that it contradicts most.
    foreign: whether the scan does not look like those of training: then no mask is plausible.
  """

  misfits: frozenset[str]
  misplaced: Mapping[str, str]
  foreign: bool


def choose(looks: Mapping[str, Look], scene: Scene, records: Sequence[Record]) -> Record:
  """The record of the region of the body that a scan shows.

  It is one of which more than half of the organs that its scans show have a plausible mask; else
  that of the scans which this one is most like.

  Args:
    looks: of all trained classes that have voxels.
    scene: the scan.
    records: of the model, at least one.
  """
  for record in records:
    known = {name: look for name, look in looks.items() if name in record.classes}
    deviations = deviate(known, scene.values, record)
    wrong = outliers(deviations, record.tolerance, usual=record.usual)
    agreed = known.keys() - wrong.misfits - wrong.misplaced.keys()
    if 2 * len(agreed & record.usual) > len(record.usual):
      return record
  values = scene.values
  if values is None:
    return records[0]

  def unlike(record: Record) -> float:
    return max(abs(span.excess(name, values[name])) for name, span in record.scan.items())

  return min(records, key=unlike)


def judge(
  looks: Mapping[str, Look],
  scene: Scene,
  record: Record,
  specks: Collection[str] = (),
  others: Sequence[Record] = (),
) -> Judgement:
  """Compares masks with the training labels, each in itself and in its place among the others.

  Args:
    looks: of all trained classes that have voxels, whatever was asked for.
    scene: the scan.
    record: of the region that the scan shows; the rule is that of `outliers`.
    specks: classes whose mask is too small to be measured, as no training label is.
    others: the records of other regions. Masks of classes that only their scans showed are
      compared with theirs, in themselves: they may be there, but not look like something else.
  """
  known = {name: look for name, look in looks.items() if name in record.classes}
  deviations = deviate(known, scene.values, record)
  unlike = _UNLIKE if record.cases >= LEAST_CASES else record.tolerance
  wrong = outliers(deviations, record.tolerance, usual=record.usual, unlike=unlike)
  agreed = known.keys() - wrong.misfits - wrong.misplaced.keys()
  trusted = {name: look for name, look in known.items() if name in agreed}
  verdicts = _without_ranges(looks, specks, record, others, foreign=wrong.foreign)
  for name in (*known, *(name for name in specks if name not in record.absent)):
    if name in specks:
      why = [SPECK]
    else:
      why = _misfit(
        known[name], deviations.inside[name], record.classes[name].values, record.tolerance
      )
      why += _misplacement(name, wrong, deviations, record)
    beyond = bool(why) and _beyond(name, trusted, scene, record)
    told = ([OUTSIDE] if beyond else [FOREIGN] if wrong.foreign else []) + why
    unseen = name not in record.classes and name not in record.shown
    absent = beyond or unseen or (wrong.foreign and (name in wrong.misfits or name in specks))
    cut = None if name in specks else known[name].cut
    verdicts[name] = Verdict(not told, tuple(told), cut, absent)
  verdicts = {
    name: verdict
    if verdict.cut and not _unlike(looks[name], name, (record, *others), _OF_A_PART)
    else dataclasses.replace(verdict, alien=verdict.absent)
    for name, verdict in verdicts.items()
  }
  return Judgement(
    verdicts, wrong.foreign, tuple(_unlike_training(scene, record, deviations, wrong))
  )


def deviate(
  looks: Mapping[str, Look], scan: Mapping[str, float] | None, record: Record
) -> Deviations:
  """How far a scan and its masks lie outside the ranges of a record.

  Args:
    looks: of classes of the record.
    scan: `measures.SCAN` of it; None where no patient is to be seen.
    record: of the model, or of a part of its training scans.
  """
  spans = record.scan.items()
  return Deviations(
    None if scan is None else {name: span.excess(name, scan[name]) for name, span in spans},
    {name: excesses(look, record.classes[name]) for name, look in looks.items()},
    {
      name: {
        other: offset
        for other, seen in looks.items()
        if other != name and (offset := _offset(name, look, other, seen, record)) is not None
      }
      for name, look in looks.items()
    },
  )


def outliers(
  deviations: Deviations, tolerance: float, *, usual: Collection[str], unlike: float = _UNLIKE
) -> Outliers:
  """The masks that are not plausible: the one rule, by which the tolerance is calibrated too.

  A mask is implausible where a measure lies farther outside its range than the tolerance, or where
  it contradicts the places of the others. A scan is foreign where its own measures are out of
  range and at most half of the organs that training scans show have a plausible mask, or where none
  of several masks does: then none is.

  Args:
    deviations: of the scan.
    tolerance: in `Range.excess`.
    usual: classes that nearly every training scan shows.
    unlike: excess of the scan's own measures from which on they are out of range.
  """
  misfits = frozenset(
    name for name, excess in deviations.inside.items() if max(map(abs, excess.values())) > tolerance
  )
  apart = {name: row for name, row in deviations.apart.items() if name not in misfits}
  wrong_place = misplaced(apart, tolerance)
  agreed = apart.keys() - wrong_place.keys()
  scan = deviations.scan
  odd = scan is None or any(abs(excess) > unlike for excess in scan.values())
  few = 2 * len(agreed & set(usual)) <= len(usual)
  nothing_right = len(deviations.inside) > 1 and not agreed
  return Outliers(misfits, wrong_place, (odd and few) or nothing_right)


def excesses(look: Look, known: ClassRecord) -> dict[str, float]:
  """How far each measure of a mask lies outside its range; see `Range.excess`."""
  excess = {name: known.values[name].excess(name, look.values[name]) for name in measures.MASK}
  if known.partial:
    excess['volume_ml'] = 0.0
  elif look.cut:
    excess['volume_ml'] = max(0.0, excess['volume_ml'])
  return excess


def misplaced(apart: Mapping[str, Mapping[str, Offset]], tolerance: float) -> dict[str, str]:
  """The classes to take out until the others agree where they are, each with what it contradicts.

  The one that contradicts most others goes; of equals, the one farther outside all ranges.

  Args:
    apart: of `Deviations`, of the classes that may be right.
    tolerance: of an offset.
  """
  left = list(apart)
  removed: dict[str, str] = {}
  while left:
    rows = {name: {o: apart[name][o].excess for o in left if o in apart[name]} for name in left}
    wrong = {name: sum(e > tolerance for e in row.values()) for name, row in rows.items()}
    worst = max(left, key=lambda name: (wrong[name], sum(rows[name].values())))
    if not wrong[worst]:
      break
    removed[worst] = max(rows[worst], key=rows[worst].__getitem__)
    left.remove(worst)
  return removed


def _offset(name: str, look: Look, other: str, seen: Look, record: Record) -> Offset | None:
  """Of two classes in a scan; None where their places are not known."""
  spans = record.classes[name].offsets.get(other, ())
  offset = look.offset(seen)
  # Where the field of view ends in one of them, nobody knows the height of its middle.
  axes = [a for a in range(len(spans)) if a < 2 or not (look.cut or seen.cut)]
  if not axes:
    return None
  excess = {axis: abs(spans[axis].excess('mm', float(offset[axis]))) for axis in axes}
  axis = max(axes, key=excess.__getitem__)
  return Offset(excess[axis], axis, float(offset[axis]))


def _misfit(
  look: Look, excess: Mapping[str, float], ranges: Mapping[str, Range], tolerance: float
) -> list[str]:
  """What is wrong with a mask in itself, the worst first."""
  worst = sorted(excess, key=lambda name: -abs(excess[name]))
  return [
    reasons.of_mask(name, look.values[name], ranges[name], excess[name])
    for name in worst
    if abs(excess[name]) > tolerance
  ][:_SHOWN]


def _without_ranges(
  looks: Mapping[str, Look],
  specks: Collection[str],
  record: Record,
  others: Sequence[Record],
  *,
  foreign: bool,
) -> dict[str, Verdict]:
  """What is to be thought of masks of classes of which a record has no ranges; of others, too.

  Args:
    looks: as for `judge`.
    specks: likewise.
    record: likewise.
    others: likewise.
    foreign: whether the scan is: then nothing says that any mask is right.
  """
  unknown = Verdict(False, (FOREIGN,)) if foreign else Verdict()
  verdicts = {name: dataclasses.replace(unknown, cut=look.cut) for name, look in looks.items()}
  for name in record.absent:
    if name in looks or name in specks:
      cut = looks[name].cut if name in looks else None
      verdicts[name] = Verdict(False, (ELSEWHERE,), cut, absent=True)
  for name, whys in _elsewhere(looks, record, others).items():
    # What the field of view cuts may look like anything, but not in a scan of nobody knows what.
    if foreign or (all(whys) and not looks[name].cut):
      first = (UNSEEN, *whys[0]) if all(whys) else (FOREIGN,)
      verdicts[name] = Verdict(False, first, looks[name].cut, absent=True)
  regions = (record, *others)
  few = frozenset[str]().union(*(region.few for region in regions))
  for name in looks.keys() & few - {*record.classes, *record.absent} if foreign else ():
    why = _unlike(looks[name], name, regions, measures.SURROUNDINGS)
    if why:
      verdicts[name] = Verdict(False, (FOREIGN, *why), looks[name].cut, absent=True)
  return verdicts


def _elsewhere(
  looks: Mapping[str, Look], record: Record, others: Sequence[Record]
) -> dict[str, list[list[str]]]:
  """Of masks of classes that only other regions showed, what each of their records finds wrong."""
  wrong = {}
  for name in looks.keys() - {*record.classes, *record.absent, *record.shown}:
    known = [(other.classes[name], other.tolerance) for other in others if name in other.classes]
    if known:
      look = looks[name]
      wrong[name] = [
        _misfit(look, excesses(look, one), one.values, tolerance) for one, tolerance in known
      ]
  return wrong


def _unlike(look: Look, name: str, records: Sequence[Record], names: Collection[str]) -> list[str]:
  """What is wrong with a mask in some measures; nothing where one of the records allows it.

  Args:
    look: of the mask.
    name: of the class.
    records: of all regions; those without ranges of the class say nothing.
    names: of the measures.
  """
  wrong = []
  for record in records:
    ranges = record.ranges(name)
    if ranges is not None:
      excess = {m: ranges[m].excess(m, look.values[m]) for m in names if m in ranges}
      wrong.append(_misfit(look, excess, ranges, record.tolerance))
  return wrong[0] if wrong and all(wrong) else []


def _misplacement(name: str, wrong: Outliers, deviations: Deviations, record: Record) -> list[str]:
  """Which class a mask contradicts by its place, if it does."""
  other = wrong.misplaced.get(name)
  if other is None:
    return []
  offset = deviations.apart[name][other]
  span = record.classes[name].offsets[other][offset.axis]
  return [reasons.of_offset(other, offset.axis, -offset.mm, span)]


def _unlike_training(
  scene: Scene, record: Record, deviations: Deviations, wrong: Outliers
) -> list[str]:
  """How a foreign scan differs from those of training, the worst first."""
  if not wrong.foreign:
    return []
  if scene.values is None or deviations.scan is None:
    return ['no patient is to be seen in it']
  values, excess = scene.values, deviations.scan
  worst = sorted(excess, key=lambda name: -abs(excess[name]))
  told = [
    reasons.of_scan(name, values[name], record.scan[name], excess[name])
    for name in worst
    if abs(excess[name]) > _UNLIKE
  ]
  return told[:_SHOWN] or ['none of the masks is plausible']


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
