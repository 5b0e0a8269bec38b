"""Makes the record of a model from its training labels."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import bricks
from mome_jax.plausibility.judge import excesses, offset_excess
from mome_jax.plausibility.measures import FINEST_MM, MASK, SCAN, Look, Scene
from mome_jax.plausibility.record import (
  LEAST_CASES,
  MOST_CASES,
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
  """

  scan: Mapping[str, float]
  supervised: frozenset[str]
  looks: Mapping[str, Look]
  partial: frozenset[str]


def learn_stores(
  stores: Sequence[bricks.BrickStore], classes: Sequence[str], *, most: int = MOST_CASES
) -> Record:
  """The record of the labels in some prepared sources.

  Args:
    stores: of the sources.
    classes: K names.
    most: training scans that are measured; of more, as many of each source, spread evenly.

  Raises:
    RecordError: if no class is labelled in enough scans, or the sources have several spacings.
  """
  spacings = {store.spacing for store in stores}
  if len(spacings) != 1:
    raise RecordError(f'sources of spacings {sorted(spacings)} mm; prepare them at one')
  grid = tuple(max(mm, FINEST_MM) for mm in spacings.pop())
  looks = [look for store in stores for look in _looks(store, classes, most // len(stores), grid)]
  return learn(looks, classes, grid)


def _looks(
  store: bricks.BrickStore, classes: Sequence[str], most: int, grid: Sequence[float]
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
    yield TrainingLook(
      scene.values, frozenset(case.supervised), looks, frozenset(case.slice_ranges)
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

  Args:
    scans: what they look like.
    classes: names, in the order of the record.
    grid: (3,) mm that was measured on.

  Raises:
    RecordError: if no class is labelled in at least `LEAST_CASES` of them.
  """
  record = _ranges(scans, classes, grid)
  if not record.classes:
    raise RecordError(
      f'no class is labelled in {LEAST_CASES} of the {len(scans)} training scans: their ranges '
      'cannot be told; masks of this model are not judged'
    )
  worst: dict[str, list[float]] = collections.defaultdict(list)
  for fold in range(_FOLDS):
    others = [scan for number, scan in enumerate(scans) if number % _FOLDS != fold]
    known = _ranges(others, classes, grid)
    for scan in scans[fold::_FOLDS]:
      for name, excess in _worst(scan, known).items():
        worst[name].append(excess)
  every = np.concatenate([*worst.values()]) if worst else np.zeros(1)
  tolerance = max(_LEAST_TOLERANCE, round(float(np.quantile(every, 1 - _FALSE_ALARMS)), 2))
  left_out = {
    'masks': {name: len(worst[name]) for name in record.classes},
    'implausible': {
      name: int((np.array(worst[name]) > tolerance).sum()) for name in record.classes
    },
  }
  return dataclasses.replace(record, tolerance=tolerance, left_out=left_out)


def _worst(scan: TrainingLook, known: Record) -> dict[str, float]:
  """The largest excess of each label, in itself and by its median place from the others."""
  looks = {name: look for name, look in scan.looks.items() if name in known.classes}
  worst = {}
  for name, look in looks.items():
    inside = max(map(abs, excesses(look, known.classes[name]).values()))
    apart = [
      offset_excess(name, look, other, seen, known)[0]
      for other, seen in looks.items()
      if other != name
    ]
    worst[name] = max(inside, float(np.median(apart)) if apart else 0.0)
  return worst


def _ranges(scans: Sequence[TrainingLook], classes: Iterable[str], grid: Sequence[float]) -> Record:
  partial = frozenset[str]().union(*(scan.partial for scan in scans))
  found = {name: [scan.looks[name] for scan in scans if name in scan.looks] for name in classes}
  known = [name for name, looks in found.items() if len(looks) >= LEAST_CASES]
  records = {}
  for name in known:
    looks = found[name]
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
  return Record(tuple(grid), len(scans), _LEAST_TOLERANCE, scan, records)


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
