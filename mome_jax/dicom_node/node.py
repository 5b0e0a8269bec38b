"""From a series that has arrived to results that were sent."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from input_pipeline.ct import dicom
from input_pipeline.files import folder_lock
from mome_jax.dicom_node import folders, network
from mome_jax.dicom_node.settings import Settings, SettingsError
from mome_jax.errors import UserError
from mome_jax.inference.model import Model
from mome_jax.predict import (
  dicom_source,
  formats,
  prompted_model,
  segment_scans,
  write_results,
)
from mome_jax.predict.request import Request
from mome_jax.predict.result import Result
from mome_jax.predict.verdicts import UnfamiliarError
from mome_jax.runtime import process
from mome_jax.text.prompts import parse_prompts

_TICK = 0.2  # seconds between looks
_MOST_DOUBLINGS = 10  # of the pause between attempts
_MOST_BEGUN = 3  # times that a series may be begun


@dataclasses.dataclass
class Node:
  """A node that listens.

  FOLDER/incoming/SERIES holds images that come, working/ what is segmented, outgoing/SERIES results
  to send; failed/SERIES and done/SERIES hold the images or results that could not be segmented or
  sent, and those that are kept; where such a folder is there already, the next has a number (-2).
  One node at a time works in a folder. What the disk refuses costs the series that it is about, and
  nothing of what has come.

  Attributes:
    settings: what it does.
    model: that answers.
    tell: gets a line for the log.
  """

  settings: Settings
  model: Model
  tell: Callable[[str], object] = print
  stopped: threading.Event = dataclasses.field(default_factory=threading.Event)

  def __post_init__(self) -> None:
    root = pathlib.Path(self.settings.folder).expanduser().absolute()
    places = ('incoming', 'working', 'outgoing', 'failed', 'done')
    self.incoming, self.working, self.outgoing, self.failed, self.done = (
      root / name for name in places
    )
    try:
      for name in places:
        (root / name).mkdir(parents=True, exist_ok=True)
      with contextlib.ExitStack() as stack:
        self._lock = stack.enter_context(_locked(root))
        for left in self.working.glob('[!.]*'):  # the node was stopped while it was at it
          self._take_up(left)
        for half in self.outgoing.glob('.*'):  # of what it was at
          shutil.rmtree(half)
        self._receiver = network.Receiver(self.settings, self.incoming)
        stack.pop_all()
    except OSError as error:
      raise network.NodeError(f'{root}: cannot be written ({folders.refusal(error)})') from error
    self._retries: dict[str, tuple[int, float]] = {}  # series -> attempts, not before
    self._retries_wait = True  # for a series that is segmented before
    self._segmented: set[str] = set()  # series since the start

  @property
  def port(self) -> int:
    """That is listened on."""
    return self._receiver.port

  def run(self) -> None:
    """Works until `stopped` is set; what is begun is gone on with at the next start.

    Raises:
      NodeError: if its folder is gone.
    """
    try:
      while not self.stopped.is_set():
        if not self.step():
          self.stopped.wait(_TICK)
    except OSError as error:
      raise network.NodeError(f'the node cannot go on: {folders.refusal(error)}') from error
    finally:
      self._receiver.close()
      self._lock.close()

  def step(self) -> bool:
    """Segments or sends one series; False where there is nothing to do."""
    due = lambda folder: self._retries.get(folder.name, (0, 0.0))[1]
    outgoing = sorted(folder for folder in self.outgoing.iterdir() if folder.is_dir())
    ready = [folder for folder in outgoing if time.monotonic() >= due(folder)]
    new = [folder for folder in ready if folder.name not in self._retries]
    if new:
      self._send(new[0])
    # By turns: a destination that is gone may take a minute to be found so.
    elif (self._retries_wait or not ready) and self._segment_next():
      self._retries_wait = not ready
      return True
    elif ready:
      self._retries_wait = True
      self._send(min(ready, key=due))
    return bool(ready)

  def _segment_next(self) -> bool:
    """Segments a series that is whole; False where there is none."""
    for series in self._receiver.whole():
      place = self.working / series
      try:
        is_taken = self._receiver.take(series, place)
      except OSError as error:
        self.tell(f'{series}: {folders.refusal(error)}; again in {self.settings.wait:.0f} s')
        continue
      if is_taken:
        output, count = self.outgoing / f'.{series}', self._count(series)
        try:
          count.write_text(str(_number(count) + 1), encoding='utf-8')
          self._segment(place, output)
        except OSError as error:
          self._fail(place, 'images', folders.refusal(error))
        except KeyboardInterrupt:  # the node is stopped, which is no fault of the series
          count.unlink(missing_ok=True)
          raise
        shutil.rmtree(output, ignore_errors=True)
        count.unlink(missing_ok=True)
        process.release()
        return True
    return False

  def _count(self, series: str) -> pathlib.Path:
    """The file with how often a series was begun, as long as it is not done."""
    return self.working / f'.{series}'

  def _take_up(self, place: pathlib.Path) -> None:
    """Has a series begun once more; one that ends the process does not do so for ever."""
    count = self._count(place.name)
    begun = _number(count)
    if begun >= _MOST_BEGUN:
      self._fail(place, 'images', f'the node ended {begun} times while it was at it')
      count.unlink(missing_ok=True)
    else:
      folders.move(place, self.incoming / place.name)

  def _segment(self, place: pathlib.Path, output: pathlib.Path) -> None:
    series, count = place.name, sum(1 for _ in place.iterdir())
    again = ', later than those segmented before; the results are of these alone'
    self.tell(f'{series}: {count} images{again if series in self._segmented else ""}')
    self._segmented.add(series)
    if left_out := _left_out(place):
      self.tell(f'{series}: nothing to segment: {", ".join(left_out)}')
      self._put_away(place, 'images')
      return
    began = time.monotonic()
    options = formats.make_options(self.settings.results)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the legend, what matters is told below
        results = segment_scans.segment(
          lambda: self.model,
          Request([place], _prompts(self.settings), options),
          output,
          progress=False,
        )
      problems = _problems(results)
    except UserError as error:
      problems = [str(error)]
    files = sorted(output.glob('*.dcm')) if output.is_dir() else []
    for doubt in _doubts(output):
      self.tell(f'{series}: {doubt}')
    failed = bool(problems) or not files
    if failed:
      reason = '; '.join(problems) or 'nothing was found in it, so there is no result'
      self._fail(place, 'images', reason)
    if files:
      self.tell(f'{series}: segmented in {time.monotonic() - began:.1f} s, {len(files)} results')
      for file in output.iterdir():
        if file not in files and not self.settings.keep:
          shutil.rmtree(file) if file.is_dir() else file.unlink()
      output.rename(folders.unused(self.outgoing / series))
    if not failed:
      self._put_away(place, 'images')

  def _send(self, folder: pathlib.Path) -> None:
    series, files = folder.name, sorted(folder.glob('*.dcm'))
    lacking: list[str] = []
    for destination in self.settings.destinations if files else ():
      address = f'{destination.ae_title}-{destination.host}-{destination.port}'
      mark = folder / f'.sent-{urllib.parse.quote(address, safe="")}'
      if mark.exists():
        continue
      try:
        network.send(files, destination, self.settings.ae_title, stopped=self.stopped.is_set)
        mark.touch()
      except network.SendError as error:
        lacking.append(str(error))
      except OSError as error:
        lacking.append(folders.refusal(error))
      else:
        self.tell(f'{series}: {len(files)} results sent to {destination.ae_title}')
    if not lacking:
      try:
        self._put_away(folder, 'results')
        self._retries.pop(series, None)
        return
      except OSError as error:
        lacking.append(folders.refusal(error))
    if not self.stopped.is_set():
      self._try_again(folder, '; '.join(lacking))

  def _try_again(self, folder: pathlib.Path, reason: str) -> None:
    """Has results sent later once more, or gives them up."""
    series = folder.name
    attempts = self._retries.get(series, (0, 0.0))[0] + 1
    if attempts >= self.settings.attempts:
      self._fail(folder, 'results', reason)
      if not folder.exists():
        self._retries.pop(series, None)
        return
    pause = max(self.settings.wait, 1.0) * 2 ** min(attempts - 1, _MOST_DOUBLINGS)
    self._retries[series] = attempts, time.monotonic() + pause
    self.tell(f'{series}: {reason}; again in {pause:.0f} s')

  def _fail(self, place: pathlib.Path, noun: str, reason: str) -> None:
    """Keeps what could not be done, and tells; where that cannot be moved, it stays."""
    kept = folders.unused(self.failed / place.name / noun)
    try:
      folders.move(place, kept)
      (kept / 'reason.txt').write_text(reason + '\n', encoding='utf-8')
    except OSError as error:
      reason = f'{reason}; {folders.refusal(error)}'
    kept = place if place.exists() else kept
    self.tell(f'{place.name}: failed: {reason} (kept in {kept})')

  def _put_away(self, place: pathlib.Path, noun: str) -> None:
    if self.settings.keep:
      folders.move(place, folders.unused(self.done / place.name / noun))
    else:
      shutil.rmtree(place)


def _left_out(place: pathlib.Path) -> tuple[str, ...]:
  """What there is where it is all no scan, as localizers are; nothing where a scan may be."""
  try:
    study = dicom.find_series(place)
  except UserError:  # told of when it is segmented
    return ()
  return () if study.series or study.failed or study.unsupported else study.left_out


def _problems(results: Sequence[Result]) -> list[str]:
  """Why results are not there; notes on the headers, which may hold a name, are left out."""
  told = []
  for result in results:
    missing = write_results.not_written(result.missing)
    told += [result.message] if result.status == 'failed' else missing
  return told


def _doubts(output: pathlib.Path) -> list[str]:
  """What the legends in a folder say against the masks."""
  told = []
  for file in sorted(output.glob('*_seg.json')):
    legend = json.loads(file.read_text(encoding='utf-8'))
    doubts = dicom_source.Doubts.of(legend['labels'], legend)
    if doubts.foreign:
      told.append('does not look like the scans the model was trained on: do not trust its masks')
    else:
      told += [f'{name} is implausible: {why}' for name, why in doubts.masks.items()]
    told += [
      f'{row["name"]} removed as not there: {"; ".join(row["reasons"])}'
      for row in legend['labels']
      if row['removed_ml']
    ]
  return told


def _number(file: pathlib.Path) -> int:
  """The number in a file; 0 without one."""
  try:
    return int(file.read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError):
    return 0


def _locked(root: pathlib.Path) -> TextIO:
  """A file that is locked as long as it is open; NodeError where another node has it."""
  lock = (root / '.lock').open('w')
  try:
    folder_lock.lock(lock, wait=False)
  except BlockingIOError as error:
    lock.close()
    raise network.NodeError(
      f'{root}: another node works in it; stop that one, or set another folder'
    ) from error
  return lock


def load(settings: Settings) -> Model:
  """The model of a node; errors as of `prompted_model.load` and `check_prompts`."""
  model = prompted_model.load(settings.model)
  check_prompts(settings, model)
  return model


def check_prompts(settings: Settings, model: Model) -> None:
  """Has a model read the prompts once, so that a slip in them does not cost every series.

  Raises:
    SettingsError: if the model was not trained on one of them.
    UserError: as `prompted_model.ask`.
  """
  try:
    prompted_model.ask(model, Request((), _prompts(settings)))
  except UnfamiliarError as error:
    raise SettingsError(f'prompts: {error.what}') from error


def _prompts(settings: Settings) -> list[str] | None:
  return parse_prompts(settings.prompts) if settings.prompts else None
