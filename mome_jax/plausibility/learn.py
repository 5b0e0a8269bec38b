"""Makes the record of a model from its training labels."""

import bisect
import collections
import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import bricks
from input_pipeline.patients import patient_folds
from mome_jax.plausibility.judge import Deviations, deviate, outliers
from mome_jax.plausibility.measures import FINEST_MM, MASK, SCAN, Look, Scene
from mome_jax.plausibility.record import (
  FEWEST_CASES,
  LEAST_CASES,
  MOST_CASES,
  OF_FEW,
  ClassRecord,
  Range,
  Record,
  RecordError,
)

_FOLDS = 5
_LEAST_TOLERANCE, _FALSE_ALARMS = 3.5, 0.01  # of training labels, left out


@dataclasses.dataclass(frozen=True)
class TrainingLook:
  """What one training scan looks like.

  Attributes:
    scan: of `measures.SCAN`.
    supervised: classes whose labels can be trusted, there or not.
    looks: of the supervised classes that have voxels, by name.
    partial: those of them that were labelled in a range of slices only.
    patient: who is to be seen; scans of one patient are left out together.
    source: of the scan.
    absent: classes that such a scan cannot show, as its source declares.
  """

  scan: Mapping[str, float]
  supervised: frozenset[str]
  looks: Mapping[str, Look]
  partial: frozenset[str]
  patient: str
  source: str = ''
  absent: frozenset[str] = frozenset()


def learn_stores(
  stores: Sequence[bricks.BrickStore],
  classes: Sequence[str],
  data_dir: str | os.PathLike,
  *,
  most: int = MOST_CASES,
) -> list[Record]:
  """The records of the labels in some prepared sources, of the region with most scans first.

  Args:
    stores: of the sources.
    classes: K names.
    data_dir: where the sources are prepared; tells which scans are of one patient.
    most: training scans that are measured; of more, as many of each source, spread evenly.

  Raises:
    RecordError: if no class is labelled in enough scans, or the sources have several spacings.
  """
  spacings = {store.spacing for store in stores}
  if len(spacings) != 1:
    raise RecordError(f'sources of spacings {sorted(spacings)} mm; prepare them at one')
  grid = tuple(max(mm, FINEST_MM) for mm in spacings.pop())
  groups: dict[patient_folds.Key, str] = {}
  for store in stores:
    groups |= bricks.read_patients(data_dir, store.name)
  patients = patient_folds.patients((case for store in stores for case in store.cases), groups)
  shares = _shares([len(store.cases) for store in stores], most)
  looks = [
    list(_looks(store, classes, share, grid, patients))
    for store, share in zip(stores, shares, strict=True)
  ]
  records = [learn(scans, classes, grid) for scans in regions(looks)]
  if not any(record.classes or record.absent for record in records):
    raise RecordError(
      f'each class is labelled in fewer than {LEAST_CASES} of the {sum(map(len, looks))} training '
      'scans that were measured: how much it varies cannot be told; masks of this model are not '
      'judged. More labelled scans mend it'
    )
  return sorted(records, key=lambda record: -record.cases)


def regions(sources: Iterable[Sequence[TrainingLook]]) -> list[list[TrainingLook]]:
  """The scans of each region of the body.

  A source belongs to the first region of whose sources it contradicts none: neither shows what the
  other declares absent.

  Args:
    sources: the scans of each.
  """
  made: list[list[Sequence[TrainingLook]]] = []
  for scans in sources:
    for region in made:
      if not any(_contradict(scans, other) for other in region):
        region.append(scans)
        break
    else:
      made.append([scans])
  joined = (list(itertools.chain.from_iterable(region)) for region in made)
  return [scans for scans in joined if scans]


def _contradict(one: Sequence[TrainingLook], other: Sequence[TrainingLook]) -> bool:
  return bool(_shown(one) & _absent(other) or _shown(other) & _absent(one))


def _shown(scans: Iterable[TrainingLook]) -> frozenset[str]:
  return frozenset(name for scan in scans for name in scan.looks)


def _absent(scans: Sequence[TrainingLook]) -> frozenset[str]:
  """What none of the scans can show."""
  return frozenset.intersection(*(scan.absent for scan in scans)) if scans else frozenset()


def _shares(counts: Sequence[int], most: int) -> list[int]:
  """How many scans of each source are measured: alike, but for what small ones leave to others."""
  shares = [0] * len(counts)
  for left, source in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
    shares[source] = min(counts[source], (most - sum(shares)) // (len(counts) - left))
  return shares


def _looks(
  store: bricks.BrickStore,
  classes: Sequence[str],
  most: int,
  grid: Sequence[float],
  patients: Mapping[patient_folds.Key, str],
) -> Iterator[TrainingLook]:
  table = store.template.code_table(classes)
  count = len(store.cases)
  numbers = np.linspace(0, count - 1, min(count, max(1, most))).round().astype(int)
  for number in np.unique(numbers).tolist():
    case = store.cases[number]
    image, codes = _assemble(store, number)
    scene = Scene(image, store.spacing, grid)
    if scene.values is None:
      continue
    codes = scene.sample(codes)
    looks = {
      name: look
      for k, name in enumerate(classes)
      if name in case.supervised and (look := scene.look(table[:, k][codes])) is not None
    }
    # Of a class that is absent from a part of the scan, nothing is known elsewhere.
    unknown = frozenset(case.absent) & frozenset(case.slice_ranges)
    yield TrainingLook(
      scene.values,
      frozenset(case.supervised) - unknown,
      looks,
      frozenset(case.slice_ranges) - unknown,
      patients[case.key],
      store.name,
      frozenset(case.absent) & frozenset(classes) - unknown,
    )


def _assemble(store: bricks.BrickStore, number: int) -> tuple[np.ndarray, np.ndarray]:
  """A training scan and its codes, put together from the bricks: (D, H, W)."""
  shape = store.cases[number].shape
  padded = [-(-n // store.brick) * store.brick for n in shape]
  image, codes = np.full(padded, -1024, np.int16), np.zeros(padded, np.uint8)
  for record in np.flatnonzero(store.case == number):
    place = tuple(slice(first, first + store.brick) for first in store.position[record])
    image[place], codes[place] = store.read(int(record))
  inside = tuple(slice(n) for n in shape)
  return image[inside], codes[inside]


def learn(scans: Sequence[TrainingLook], classes: Sequence[str], grid: Sequence[float]) -> Record:
  """The record of some training scans, its tolerance calibrated by leaving a fifth of them out.

  It is the smallest by which, in the patients left out, `judge.outliers` calls one label in a
  hundred implausible at most.

  Args:
    scans: what they look like, of one region.
    classes: names, in the order of the record.
    grid: (3,) mm that was measured on.
  """
  record = _ranges(scans, classes, grid)
  left_out = _leave_out(scans, classes, grid)
  masks = collections.Counter(name for one in left_out for name in one.deviations.inside)
  most = int(_FALSE_ALARMS * masks.total())
  steps = [_LEAST_TOLERANCE, *sorted({t for one in left_out for t in one.steps()})]
  # From the last step on nothing is called implausible but for the scan's own measures.
  first = bisect.bisect_left(
    range(len(steps) - 1), True, key=lambda n: _alarms(left_out, steps[n]).total() <= most
  )
  tolerance = steps[first]
  alarms = _alarms(left_out, tolerance)
  told = {
    'masks': {name: masks[name] for name in record.classes},
    'implausible': {name: alarms[name] for name in record.classes},
  }
  return dataclasses.replace(record, tolerance=tolerance, left_out=told)


@dataclasses.dataclass(frozen=True)
class _LeftOut:
  """A training scan beside the record of other patients.

  Attributes:
    deviations: of its labels.
    usual: the classes that it would show, as nearly all do.
  """

  deviations: Deviations
  usual: frozenset[str]

  def steps(self) -> set[float]:
    """Tolerances above the least one from which on a label is judged otherwise, rounded up."""
    inside = [abs(e) for row in self.deviations.inside.values() for e in row.values()]
    apart = [offset.excess for row in self.deviations.apart.values() for offset in row.values()]
    return {math.ceil(100 * e) / 100 for e in (*inside, *apart) if e > _LEAST_TOLERANCE}


def _leave_out(
  scans: Sequence[TrainingLook], classes: Sequence[str], grid: Sequence[float]
) -> list[_LeftOut]:
  """Each scan beside the record of the patients of the other folds."""
  dealt = patient_folds.deal((scan.patient for scan in scans), _FOLDS)
  left_out = []
  for fold in range(_FOLDS):
    known = _ranges([s for s in scans if dealt[s.patient] != fold], classes, grid)
    for scan in scans:
      if dealt[scan.patient] != fold:
        continue
      looks = {name: look for name, look in scan.looks.items() if name in known.classes}
      left_out.append(_LeftOut(deviate(looks, scan.scan, known), known.usual & scan.supervised))
  return left_out


def _alarms(left_out: Iterable[_LeftOut], tolerance: float) -> collections.Counter[str]:
  """How many labels of each class are called implausible."""
  count: collections.Counter[str] = collections.Counter()
  for one in left_out:
    wrong = outliers(one.deviations, tolerance, usual=one.usual)
    names = (*one.deviations.inside,) if wrong.foreign else (*wrong.misfits, *wrong.misplaced)
    count.update(names)
  return count


def _ranges(scans: Sequence[TrainingLook], classes: Iterable[str], grid: Sequence[float]) -> Record:
  partial = frozenset[str]().union(*(scan.partial for scan in scans))
  labelled = {name: [s.looks[name] for s in scans if name in s.looks] for name in classes}
  known = [name for name, looks in labelled.items() if len(looks) >= LEAST_CASES]
  records = {}
  for name in known:
    looks = labelled[name]
    values = {m: Range.of([look.values[m] for look in looks]) for m in MASK}
    whole = [look.values['volume_ml'] for look in looks if not look.cut]
    if len(whole) >= LEAST_CASES:
      values['volume_ml'] = Range.of(whole)
    offsets = {
      other: spans
      for other in known
      if other != name and (spans := _offsets(scans, name, other, partial))
    }
    supervised = sum(name in scan.supervised for scan in scans)
    cut = sum(look.cut for look in looks)
    records[name] = ClassRecord(len(looks), supervised, cut, name in partial, values, offsets)
  scan = {m: Range.of([scan.scan[m] for scan in scans]) for m in SCAN} if scans else {}
  sources = tuple(dict.fromkeys(scan.source for scan in scans))
  return Record(
    tuple(grid),
    len(scans),
    _LEAST_TOLERANCE,
    scan,
    records,
    sources=sources,
    absent=tuple(sorted(_absent(scans))),
    shown=tuple(sorted(_shown(scans))),
    few={
      name: {m: Range.of_few(m, [look.values[m] for look in looks]) for m in OF_FEW}
      for name, looks in labelled.items()
      if FEWEST_CASES <= len(looks) < LEAST_CASES
    },
  )


def _offsets(
  scans: Sequence[TrainingLook], name: str, other: str, partial: frozenset[str]
) -> tuple[Range, ...]:
  """Ranges of a class's place from another's, of at least `LEAST_CASES` scans that have both."""
  pairs = [(s.looks[name], s.looks[other]) for s in scans if {name, other} <= s.looks.keys()]
  if len(pairs) < LEAST_CASES:
    return ()
  places = np.array([look.offset(seen) for look, seen in pairs])
  spans = [Range.of(places[:, axis]) for axis in (0, 1)]
  whole = [not (look.cut or seen.cut) for look, seen in pairs]
  if sum(whole) >= LEAST_CASES and not partial & {name, other}:
    spans.append(Range.of(places[whole, 2]))
  return tuple(spans)
