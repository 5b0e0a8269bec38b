"""The records of a model: ranges of what its classes look like in the training labels.

There is one of each region of the body that it was trained on: of sources that do not contradict
each other on what a scan can show.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.cli import spoken
from input_pipeline.files import text_files
from mome_jax.errors import UserError, writing
from mome_jax.plausibility.measures import MASK, SCAN, SURROUNDINGS

FILE = 'class_statistics.json'  # beside `config.json` of a workdir or model folder
VERSION = 2  # 1 had one region, without a list
LEAST_CASES = 10  # of fewer, nobody knows a range
FEWEST_CASES = 3  # of these on, it is known what is nothing of the kind
MOST_CASES = 300  # more do not change the quantiles, and each takes a while to measure
QUANTILES = (0.02, 0.98)
OF_FEW = ('volume_ml', *SURROUNDINGS)  # the volume tells what is small, not what is wrong
_LOGARITHMIC = ('volume_ml', 'section_mm2', 'hu_sd', 'body_cm2', 'section_cm2', 'slimmest_cm2')
# Spread of a measure below which a range is not believed: a few labels agree by chance.
_FLOOR = dict.fromkeys(_LOGARITHMIC, 0.1) | dict.fromkeys((*SURROUNDINGS, *SCAN[2:]), 0.03)
_FLOOR |= {'mean_hu': 5.0, 'right': 0.05, 'anterior': 0.05, 'largest_piece': 0.05, 'mm': 2.0}
_USUAL = 0.9
_SIGMAS = 4.107  # between the 2 % and 98 % quantiles of a normal distribution


class RecordError(UserError):
  """A record that cannot be read or made; the message names the file and the fix."""


@dataclasses.dataclass(frozen=True)
class Range:
  """Where nearly all training labels lie: their 2 %, 50 % and 98 % quantiles."""

  low: float
  median: float
  high: float

  @classmethod
  def of(cls, values: Sequence[float] | np.ndarray) -> 'Range':
    """The range of some numbers."""
    low, median, high = np.quantile(np.asarray(values, float), (QUANTILES[0], 0.5, QUANTILES[1]))
    return cls(*(float(f'{number:.6g}') for number in (low, median, high)))

  @classmethod
  def of_few(cls, name: str, values: Sequence[float]) -> 'Range':
    """Where one more value of a measure is to be expected, from a few of them.

    The prediction interval of a normal distribution: mean + t s sqrt(1 + 1/n), with the quantiles
    of Student's t of n - 1 degrees of freedom (Geisser, Predictive Inference, 1993).

    Args:
      name: of the measure.
      values: at least two.
    """
    from scipy import special  # slow to import

    at = np.array([scaled(name, value) for value in values])
    spread = max(float(at.std(ddof=1)), _FLOOR[name]) * math.sqrt(1 + 1 / len(at))
    reach = spread * float(special.stdtrit(len(at) - 1, QUANTILES[1]))
    ends = (_unscaled(name, at.mean() + side * reach) for side in (-1, 0, 1))
    return cls(*(float(f'{number:.6g}') for number in ends))

  def excess(self, name: str, value: float) -> float:
    """How far a value of a measure lies below (negative) or above it; 0 inside.

    In robust standard deviations of the range: of logarithms of sizes, and of square roots of
    shares.
    """
    low, high, at = (scaled(name, number) for number in (self.low, self.high, value))
    spread = max((high - low) / _SIGMAS, _FLOOR[name])
    return (min(at - low, 0.0) + max(at - high, 0.0)) / spread


def scaled(name: str, value: float) -> float:
  """A value of a measure on the scale where its spread is about the same everywhere."""
  if name in _LOGARITHMIC:
    return math.log(max(value, 1e-3))
  return math.sqrt(value) if name in SURROUNDINGS or name in SCAN[2:] else value


def _unscaled(name: str, at: float) -> float:
  if name in _LOGARITHMIC:
    return math.exp(at)
  return max(0.0, at) ** 2 if name in SURROUNDINGS or name in SCAN[2:] else at


@dataclasses.dataclass(frozen=True)
class ClassRecord:
  """What the training labels of a class look like.

  Attributes:
    cases: number of training scans whose label of it was measured.
    supervised: number of them whose labels would show it.
    cut: of the cases, where the field of view ends in it. They say nothing of its volume.
    partial: whether some training labels cover a range of slices only. Then neither volume nor
      height in the body is known.
    values: of `measures.MASK`.
    offsets: name of another class -> ranges of its centre's place from this one's: mm to the right,
      anterior and superior, the last one only of classes that are whole.
  """

  cases: int
  supervised: int
  cut: int
  partial: bool
  values: Mapping[str, Range]
  offsets: Mapping[str, Sequence[Range]]

  @property
  def usual(self) -> bool:
    """Whether nearly every training scan that could show it does: an organ, not a tumour."""
    return self.cases >= _USUAL * self.supervised


@dataclasses.dataclass(frozen=True)
class Record:
  """What the training scans of a region look like, and the labels in them.

  Attributes:
    grid: (3,) mm that was measured on.
    cases: number of training scans that were measured.
    tolerance: of the excess over a range, in its standard deviations.
    scan: of `measures.SCAN`.
    classes: by name; those with fewer than `LEAST_CASES` labels are missing.
    left_out: what came of training labels judged by the records of other training scans: `masks`,
      how many, and `implausible`, how many of them, by class.
    sources: that the scans are of.
    absent: classes that none of the scans can show, as every source of the region declares.
    shown: classes that one of them is labelled with, however few.
    few: those of `FEWEST_CASES` to `LEAST_CASES` - 1 labels -> wide ranges of `OF_FEW`: of the
      surroundings, which disease and the end of a scan change least. In a foreign scan they tell
      what is nothing of the kind, and nothing else.
  """

  grid: tuple[float, ...]
  cases: int
  tolerance: float
  scan: Mapping[str, Range]
  classes: Mapping[str, ClassRecord]
  left_out: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sources: tuple[str, ...] = ()
  absent: tuple[str, ...] = ()
  shown: tuple[str, ...] = ()
  few: Mapping[str, Mapping[str, Range]] = dataclasses.field(default_factory=dict)

  @property
  def usual(self) -> frozenset[str]:
    """The organs that nearly every training scan shows."""
    return frozenset(name for name, known in self.classes.items() if known.usual)

  def ranges(self, name: str) -> Mapping[str, Range] | None:
    """Of the labels of a class, at least of `OF_FEW`; None where no range is known."""
    return self.classes[name].values if name in self.classes else self.few.get(name)

  def smallest_ml(self, name: str) -> float | None:
    """Volume that nearly all labels of a class exceed, ml; None where no range is known."""
    known = self.ranges(name)
    return None if known is None else known['volume_ml'].low

  def of(self, names: Collection[str]) -> 'Record':
    """The same for a model that knows these of its classes only."""
    classes = {
      name: dataclasses.replace(
        known, offsets={other: span for other, span in known.offsets.items() if other in names}
      )
      for name, known in self.classes.items()
      if name in names
    }
    absent = tuple(name for name in self.absent if name in names)
    shown = tuple(name for name in self.shown if name in names)
    few = {name: ranges for name, ranges in self.few.items() if name in names}
    return dataclasses.replace(self, classes=classes, absent=absent, shown=shown, few=few)


def write(folder: epath.PathLike, records: Sequence[Record]) -> None:
  """Writes FILE into a workdir or model folder; RecordError if it cannot be written."""
  content = {'version': VERSION, 'regions': [dataclasses.asdict(record) for record in records]}
  text = json.dumps(_short(content), indent=1)
  file = epath.Path(folder) / FILE
  with writing(file, RecordError):
    text_files.replace(file, text + '\n')


def read(folder: epath.PathLike) -> tuple[Record, ...]:
  """Reads FILE of a workdir or model folder: a record of each region; none where there is none.

  Raises:
    RecordError: if it is damaged, or of another version.
  """
  file = epath.Path(folder) / FILE
  if not file.is_file():
    return ()
  text = text_files.read_explained(file, RecordError)
  try:
    content = json.loads(text)
    version = content.pop('version')
    if version not in (1, VERSION):
      raise ValueError(f'version {version}, need {VERSION}')
    return tuple(map(_read_region, [content] if version == 1 else content['regions']))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    again = spoken('make it again with python -m mome_jax.plausibility, or remove it')
    raise RecordError(
      f'{file}: not a record of what classes look like ({error!r}); {again}'
    ) from error


def _read_region(entry: Mapping[str, Any]) -> Record:
  changed = {
    'grid': tuple(map(float, entry['grid'])),
    'scan': {name: Range(*entry['scan'][name]) for name in SCAN},
    'classes': {name: _read_class(one) for name, one in entry['classes'].items()},
    'sources': tuple(entry.get('sources', ())),
    'absent': tuple(entry.get('absent', ())),
    'shown': tuple(entry.get('shown', entry['classes'])),
    'few': {
      name: {measure: Range(*ranges[measure]) for measure in OF_FEW}
      for name, ranges in entry.get('few', {}).items()
    },
  }
  return Record(**{**entry, **changed})


def _read_class(entry: Mapping[str, Any]) -> ClassRecord:
  values = {name: Range(*entry['values'][name]) for name in MASK}
  offsets = {
    other: tuple(Range(*span) for span in spans) for other, spans in entry['offsets'].items()
  }
  return ClassRecord(**{**entry, 'values': values, 'offsets': offsets})


def _short(value: Any) -> Any:
  """Ranges as lists of three numbers."""
  if isinstance(value, dict):
    if set(value) == {'low', 'median', 'high'}:
      return [value['low'], value['median'], value['high']]
    return {key: _short(item) for key, item in value.items()}
  return [_short(item) for item in value] if isinstance(value, list | tuple) else value
