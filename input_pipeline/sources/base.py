"""What a source is.

A source lists its cases without reading an image; `Case.load` reads one. Label maps hold the codes
of `anatomy`. Supervision is per case: a class that a case does not label is unknown there, not
absent, and is never trained or scored.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from input_pipeline import remarks
from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE, Template
from input_pipeline.ct import volume
from input_pipeline.errors import UserError, printable

Loader = TypeVar('Loader', bound=Callable)
Key = tuple[str, str]  # source and name of a case


class SourceError(UserError):
  """A source's files are missing or contradict each other; the message names file and fix."""


@dataclasses.dataclass(frozen=True)
class Scan:
  """One CT with its labels.

  Attributes:
    image: (D, H, W) HU, int16 or float32, canonical axis order.
    codes: (D, H, W) uint8, the label codes of `anatomy`.
    geometry: of the scan's own grid.
  """

  image: np.ndarray
  codes: np.ndarray
  geometry: volume.Geometry


class Named:
  """What a scan is called by, as the dataclasses that describe one say it."""

  source: str
  name: str

  @property
  def key(self) -> Key:
    """Source and name, which no other scan has."""
    return self.source, self.name


class Known(Named):
  """What is known of the classes of a scan, as the dataclasses that describe one say it."""

  supervised: tuple[str, ...]
  slice_ranges: Mapping[str, tuple[float, float]]
  absent: tuple[str, ...]

  @property
  def labelled(self) -> tuple[str, ...]:
    """The supervised classes that somebody labelled."""
    return tuple(name for name in self.supervised if name not in self.absent)

  def heights(self, name: str) -> tuple[float, float]:
    """Those of `Case.slice_ranges` between which a class is known; over all the scan, infinite."""
    return self.slice_ranges.get(name, (-math.inf, math.inf))


@dataclasses.dataclass(frozen=True)
class Case(Known):
  """What is known of a scan before it is read.

  Attributes:
    source: name of its dataset; sampling balances over these.
    name: unique within the source.
    split: 'train', 'validation' or 'test'.
    supervised: classes that are known in every voxel: those that the case labels, and those of
      `absent`; in the template's order.
    load: reads the scan: a partial of a function that `loader` declares, whose arguments say which.
    slice_ranges: class -> (low, high), the heights in mm above the centre of the lowest slice
      between which the class is known; a class that is not there: over the whole scan.
    drawn: whether the split is a draw, which `prepare` keeps once it is made, not a declaration.
    absent: those of `supervised` that nobody labelled, as the scan cannot show them: they are
      outside its field of view, or of the part of it that `slice_ranges` says. See `field_of_view`.
    patient: who it is of, unique within the source; '' is one who is called as the case is.
  """

  source: str
  name: str
  split: str
  supervised: tuple[str, ...]
  load: Callable[[], Scan]
  slice_ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  drawn: bool = False
  absent: tuple[str, ...] = ()
  patient: str = ''


@dataclasses.dataclass(frozen=True)
class Source:
  """A dataset, or a family of datasets, that `prepare` can turn into bricks.

  Attributes:
    name: as given to `--source`.
    description, licence, citation: for people, and for the prepared dataset's metadata.
    cases: manual_dir (the folder the user downloaded, or None) -> all cases. A scan that lacks a
      file is a case that fails when it is loaded; what is left out is warned of. Raises SourceError
      if the folder as a whole cannot be used.
    expected: number of cases of the complete download; None where the user decides.
    classes: that its cases may label; () where the user decides.
    template: manual_dir -> the template of its codes. Raises SourceError.
    absent: classes that every case of it declares to be out of view.
    terms: manual_dir -> the `licence` and `citation` that the user's folder says. Raises
      SourceError.
  """

  name: str
  description: str
  licence: str
  citation: str
  cases: Callable[[str | None], list[Case]]
  expected: int | None = None
  classes: tuple[str, ...] = ()
  template: Callable[[str | None], Template] = lambda manual_dir: TEMPLATE
  absent: frozenset[str] = frozenset()
  terms: Callable[[str | None], dict[str, str]] = lambda manual_dir: {}

  def listed(self, manual_dir: str | None) -> tuple[list[Case], list[str]]:
    """All cases, and what of the folder is none of them, as lines for people.

    Names are `printable`: they go into records and JSON.

    Raises:
      SourceError: as `cases`.
    """
    with remarks.collected() as lines:
      cases = [
        dataclasses.replace(case, name=printable(case.name), patient=printable(case.patient))
        for case in self.cases(manual_dir)
      ]
    return cases, lines


def loader(name: str) -> Callable[[Loader], Loader]:
  """Declares a function that `Case.load` calls, under a name that never changes.

  `prepare` tells by it and the arguments whether a case would be read as it was: the function may
  be called otherwise or move, and no user's prepared data is converted again.

  Args:
    name: unlike those of functions with the same arguments that read something else.
  """

  def declare(function: Loader) -> Loader:
    function._loader_name = name  # type: ignore[attr-defined]  # functions take attributes
    return function

  return declare


def loader_name(function: Callable) -> str:
  """The name that `loader` gave, else that in the program text."""
  return getattr(function, '_loader_name', None) or function.__qualname__


def restrict_table(names: Sequence[str], template: Template = TEMPLATE) -> np.ndarray:
  """How codes look in a dataset that labels only some classes.

  A voxel keeps what the dataset knows about it: where liver is labelled but liver tumor is not, a
  tumor voxel is plain liver; where neither is, it is background.

  Args:
    names: canonical names of the labelled classes.
    template: of the codes.

  Returns:
    (256,) uint8: code -> the code that says least besides the same labelled classes; what is
    ignored stays so.
  """
  members = template.code_table(template.names())
  labelled = members[:, np.isin(template.names(), names)]
  least = np.argsort(members.sum(1), kind='stable')
  same = (labelled[:, None] == labelled[least]).all(-1)
  table = least[same.argmax(1)].astype(np.uint8)
  table[~labelled.any(1)] = 0
  table[IGNORE_CODE] = IGNORE_CODE
  return table


def in_template_order(names: Iterable[str], template: Template = TEMPLATE) -> tuple[str, ...]:
  """The names by their indices; ClassError if one is unknown."""
  return tuple(sorted(names, key=lambda name: template.get(name).index))
