"""The scans that are open, each with what was asked about it; the oldest goes for a new one."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from input_pipeline import remarks
from mome_jax.errors import UserError
from mome_jax.predict import find_scans, html_viewer, provenance, viewer_data
from mome_jax.predict.find_scans import ScanFiles
from mome_jax.predict.formats import SegmentedScan
from mome_jax.predict.open_scan import OpenScan
from mome_jax.predict.prompted_model import PromptedModel
from mome_jax.predict.request import Request
from mome_jax.serve import uploads


class GoneError(UserError):
  """What is asked about is not here, or not any more."""


@dataclasses.dataclass(eq=False)
class PromptSet:
  """What was asked about a scan at one time.

  Attributes:
    number: of it.
    request: the prompts.
    asked: the model, which has read them.
    job: number of the last job for it.
    segmented: the masks that are finished, with their rows; None before there is any.
    view: what the viewer is told of those.
    is_whole: whether all masks are finished.
    files: what was written of it, by kind.
  """

  number: int
  request: Request
  asked: PromptedModel
  job: int = 0
  segmented: SegmentedScan | None = None
  view: dict[str, Any] | None = None
  is_whole: bool = False
  files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False, kw_only=True)
class Scan(OpenScan):
  """A scan that the page has open.

  Attributes:
    number: of it.
    files: where it lies.
    folder: of its own, for temporary files.
    digest: of its content; see `provenance.of_scan`.
    step: (3,) mm of the voxels in which it is shown.
    image: NIfTI, compressed, as it is shown.
    notes: what was odd about it.
    sets: what was asked about it, by number.
    lock: held while files of it are written.
  """

  number: int
  files: ScanFiles
  folder: pathlib.Path
  digest: str
  step: np.ndarray
  image: bytes
  notes: Sequence[str]
  sets: dict[int, PromptSet] = dataclasses.field(default_factory=dict)
  numbers: itertools.count = dataclasses.field(default_factory=lambda: itertools.count(1))
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def told(self) -> dict[str, Any]:
    """What it is, fit for JSON."""
    scan = self.loaded.volume
    return {
      'scan': self.number,
      'title': self.title,
      'shape': list(scan.geometry.shape),
      'spacing_mm': [round(float(mm), 4) for mm in _own_axes(scan)],
      'series_uid': self.files.series_uid,
      'warnings': list(self.notes),
      'sets': [self.set_told(one) for one in list(self.sets.values())],  # others may drop some
    }

  def set_told(self, one: PromptSet) -> dict[str, Any]:
    """What a set of prompts is, fit for JSON."""
    return {
      'set': one.number,
      'scan': self.number,
      'prompts': list(one.request.prompts or [target.name for target in one.asked.targets]),
      'force': one.request.force,
      'names': [target.name for target in one.asked.targets],
      'notes': list(one.asked.notes),
      'job': one.job,
      'done': one.is_whole,
      'labels': [dict(row) for row in one.segmented.rows] if one.segmented else [],
    }

  def get_set(self, number: int) -> PromptSet:
    """A set of prompts; GoneError if there is none of the number."""
    if number not in self.sets:
      raise GoneError(f'{self.title}: no prompts of number {number}; ask again')
    return self.sets[number]

  def drop(self, one: PromptSet) -> None:
    """Forgets a set of prompts and removes its files."""
    with self.lock:
      self.sets.pop(one.number, None)
      for path in self.folder.glob(f'{one.number}_*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

  def clean(self, text: str) -> str:
    """A message without the place of the scan on this machine."""
    return cleaned(text, self.files, self.title)


def cleaned(text: str, files: ScanFiles, title: str) -> str:
  """A message in which a scan is called as its sender calls it."""
  for place in (files.input, str(files.path)):
    text = text.replace(place, title)
  return html_viewer.without_folders([text], str(files.path))[0]


def _own_axes(scan) -> np.ndarray:
  return scan.spacing[scan.geometry.orientation[:, 0]]


class Scans:
  """The scans that are open.

  Args:
    folder: for temporary files.
    most: how many are kept.
    on_close: called with each that goes.

  Attributes:
    most: how many are kept.
  """

  def __init__(
    self, folder: pathlib.Path, most: int, on_close: Callable[[Scan], object] = lambda scan: None
  ):
    self._folder = folder
    self.most = most
    self._on_close = on_close
    self._scans: dict[int, Scan] = {}
    self._numbers = itertools.count(1)
    self._lock = threading.Lock()

  def new_folder(self) -> pathlib.Path:
    """A new, empty folder."""
    return pathlib.Path(tempfile.mkdtemp(dir=self._folder))

  def open(self, files: ScanFiles, title: str, request: Request) -> tuple[Scan, list[str]]:
    """Reads a scan and keeps it; those that were opened first may go for it.

    Returns:
      The scan, and the titles of those that went.

    Raises:
      UserError: if it cannot be read; the message calls it by its title.
    """
    try:
      with remarks.collected() as notes:
        loaded = request.read(files)
        digest = provenance.of_scan(files)
    except UserError as error:
      raise UserError(cleaned(str(error), files, title)) from error
    step = viewer_data.shown_step(loaded.volume, html_viewer.SIDES[0])
    number = next(self._numbers)
    scan = Scan(
      key=f'scan {number}',
      number=number,
      title=title,
      files=files,
      folder=self.new_folder(),
      loaded=loaded,
      digest=digest,
      step=step,
      image=viewer_data.image(loaded.volume, step, level=1),
      notes=[cleaned(note, files, title) for note in notes],
    )
    with self._lock:
      old = list(self._scans)[: max(0, len(self._scans) + 1 - self.most)]
      self._scans[scan.number] = scan
    closed = []
    for number in old:
      with contextlib.suppress(GoneError):  # somebody has closed it meanwhile
        closed.append(self.get(number).title)
        self.close(number)
    return scan, closed

  def all(self) -> list[Scan]:
    """Those that are open, the oldest first."""
    return list(self._scans.values())

  def get(self, number: int) -> Scan:
    """A scan; GoneError if it is not open."""
    scan = self._scans.get(number)
    if scan is None:
      raise GoneError(
        f'scan {number} is not open (any more): at most {self.most} are kept; load it again'
      )
    return scan

  def close(self, number: int) -> None:
    """Forgets a scan and removes its files; GoneError if it is not open."""
    scan = self.get(number)
    if self._scans.pop(number, None) is None:  # somebody else was faster
      return
    self._on_close(scan)
    shutil.rmtree(scan.folder, ignore_errors=True)
    sent = self._sent(scan)
    if sent is not None and sent not in map(self._sent, self.all()):
      shutil.rmtree(sent, ignore_errors=True)

  def _sent(self, scan: Scan) -> pathlib.Path | None:
    """The folder of `new_folder` in which a scan was sent, maybe with others."""
    if self._folder not in scan.files.path.parents:
      return None
    return self._folder / scan.files.path.relative_to(self._folder).parts[0]


def find(path: pathlib.Path, title: str) -> tuple[list[tuple[ScanFiles, str]], list[str]]:
  """The scans of a file or folder that was sent, with their titles; notes on what was left out.

  Raises:
    UserError: if there is none.
  """
  sent = ScanFiles(title, path)
  try:
    scans, notes = find_scans.find_scans([path])
  except UserError as error:
    raise UserError(cleaned(str(error), sent, title)) from error
  notes = [cleaned(note, sent, title) for note in notes]
  if len(scans) == 1:
    return [(scans[0], title)], notes
  return [(scan, uploads.plain(f'{title}_{scan.name}')) for scan in scans], notes
