"""Scans brought to the network's spacing and kept in memory, to draw patches from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from input_pipeline import sources
from input_pipeline.anatomy import Template
from input_pipeline.bricks import cutting
from input_pipeline.bricks.records import CaseInfo, VolumeRecord


class Store(Protocol):
  """What patches are drawn from; see `BrickStore`."""

  name: str
  brick: int
  spacing: tuple[float, ...]
  cases: list[CaseInfo]
  datasets: frozenset[str]
  template: Template
  case: np.ndarray
  position: np.ndarray

  @property
  def tells_outside(self) -> bool:
    """Whether the codes tell what is outside the patient; those of earlier versions do not."""

  def read(self, record: int) -> tuple[np.ndarray, np.ndarray]:
    """One brick: image int16 HU and label uint8 codes."""

  def read_all(self, numbers: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Several bricks by one request."""

  def class_voxels(self, names: Sequence[str]) -> np.ndarray:
    """(N, K) int64: how much of each class every brick holds."""


class MemoryStore:
  """Held-out scans as a store of bricks; attributes and methods as of `BrickStore`.

  Args:
    name: of the prepared source.
    volumes: some of its `open_volumes`; each is read once and forgotten.
    spacing: (3,) mm of the network's grid.
    brick: voxels along an edge.
    template: of the codes of `volumes`.
  """

  def __init__(
    self,
    name: str,
    volumes: Iterable[VolumeRecord],
    *,
    spacing: Sequence[float],
    brick: int,
    template: Template,
  ):
    self.name, self.brick, self.template = name, brick, template
    self.spacing: tuple[float, ...] = tuple(float(mm) for mm in spacing)
    self.cases: list[CaseInfo] = []
    self._bricks: list[tuple[np.ndarray, np.ndarray]] = []
    case, position = [], []
    for volume in volumes:
      scan = sources.Scan(volume.image, volume.codes, volume.geometry)
      image, codes, offset = cutting.to_spacing(scan, self.spacing)
      for first, *arrays in cutting.cut(image, codes, brick):
        case.append(len(self.cases))
        position.append(first)
        self._bricks.append((arrays[0], arrays[1]))
      self.cases.append(_describe(volume, image.shape, offset))
    self.datasets = frozenset(case.source for case in self.cases)
    self.case = np.array(case, np.int32)
    self.position = np.array(position, np.int32).reshape(-1, 3)
    self._codes = np.array(
      [np.bincount(codes.ravel(), minlength=256) for _, codes in self._bricks], np.int64
    ).reshape(-1, 256)

  def __len__(self) -> int:
    return len(self._bricks)

  @property
  def tells_outside(self) -> bool:
    """Yes."""
    return True

  def read(self, record: int) -> tuple[np.ndarray, np.ndarray]:
    """One brick."""
    return self._bricks[record]

  def read_all(self, numbers: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Several bricks."""
    return [self._bricks[number] for number in numbers]

  def class_voxels(self, names: Sequence[str]) -> np.ndarray:
    """(N, K) int64 voxels; 0 where the case does not supervise the class."""
    supervised = np.array([[name in case.supervised for name in names] for case in self.cases])
    return (self._codes @ self.template.code_table(names)) * supervised[self.case]


def _describe(
  volume: VolumeRecord, shape: tuple[int, ...], offset: tuple[float, float, float]
) -> CaseInfo:
  ranges: Mapping[str, tuple[float, float]] = volume.slice_ranges
  mm = tuple(map(float, volume.geometry.spacing))
  x, y, z = shape
  return CaseInfo(
    volume.name,
    volume.source,
    volume.supervised,
    ranges,
    (x, y, z),
    offset,
    mm,
    volume.digest,
    volume.absent,
  )
