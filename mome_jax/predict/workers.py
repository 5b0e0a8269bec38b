"""Reading, segmenting and writing scans: three stages of a line, each busy with another scan."""

import contextlib
import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from input_pipeline.ct import volume
from mome_jax.errors import UserError
from mome_jax.inference import router_maps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.inference.segmenter import Segmenter
from mome_jax.inference.stage_clock import Clock
from mome_jax.predict import dicom_seg, find_scans, provenance, staging, write_results


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of one scan.

  Attributes:
    case: NAME in the outputs' names.
    input: the scan.
    status: 'ok', 'mirrored' (written, but liver and spleen have changed sides), 'incomplete'
      (something beside labels and legend could not be written), 'skipped' (its results were there)
      or 'failed'.
    seconds: reading, segmenting and writing.
    message: why it failed, or what was odd about it.
    timings: seconds of each stage.
    labels: what was found; see `write_results.statistics`.
    missing: outputs that were asked for and could not be written, with the reason.
    kept: whether the results are those of an earlier run.
  """

  case: str
  input: str
  status: str
  seconds: float = 0.0
  message: str = ''
  timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
  labels: Sequence[Mapping] = ()
  missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
  kept: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
  """What is done to every scan.

  Attributes:
    segmenter: of the targets, in their order.
    targets: K.
    output: existing folder.
    read: case -> scan; VolumeError where it cannot be used.
    options: what to write besides labels and legend.
    check_sides: call a scan mirrored where liver and spleen have changed sides.
    origin: fields of every legend.
    request: what every legend's scan was segmented with; see `provenance.of_run`.
    explainer: makes the routing maps of the page, or None.
    extended: names of cases whose earlier results are of this request too, and stay beside what is
      written now.
    impossible: outputs that are known not to be possible before, with the reason.
  """

  segmenter: Segmenter
  targets: Sequence[write_results.Target]
  output: pathlib.Path
  read: Callable[[find_scans.Case], find_scans.Scan]
  options: write_results.Options
  check_sides: bool
  origin: Mapping
  request: Mapping
  explainer: router_maps.Explainer | None = None
  extended: Collection[str] = ()
  impossible: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def run(
    self,
    cases: Sequence[find_scans.Case],
    on_progress: Callable[[find_scans.Case, float], object] = lambda case, share: None,
  ) -> Iterator[Result]:
    """Yields the result of each case, in order; whatever goes wrong with one is in its result.

    While one scan is segmented the next is read and the one before is written, so that three of
    them are in memory at most. Only this thread computes.

    Args:
      cases: the scans.
      on_progress: called with the case and the share of it that was segmented last.
    """
    with ThreadPoolExecutor(1, 'read') as reader, ThreadPoolExecutor(1, 'write') as writer:
      following = reader.submit(self._read, cases[0]) if cases else None
      writing = None
      for number, case in enumerate(cases):
        work = following.result()
        if number + 1 < len(cases):
          following = reader.submit(self._read, cases[number + 1])
        try:
          self._segment(work, lambda share, case=case: on_progress(case, share))
          if writing is not None:
            yield writing.result()
        except BaseException:  # stopped: nothing of this scan is written
          work.staging.__exit__(*sys.exc_info())
          raise
        writing = writer.submit(self._write, work)
        del work
      if writing is not None:
        yield writing.result()

  def _read(self, case: find_scans.Case) -> '_Work':
    work = _Work(case)
    with work.stage('read'), warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      work.scan = self.read(case)
      work.digest = provenance.of_scan(case)
    # Other threads warn meanwhile; ours begin with the file.
    notes = [str(warning.message) for warning in caught] if not work.error else []
    work.notes = [note for note in dict.fromkeys(notes) if note.startswith(str(case.path))]
    if self.options.dicom_seg and work.scan is not None:
      lacking = dicom_seg.lacking(work.scan.series.headers)
      if lacking:
        work.missing[f'{case.name}_seg.dcm'] = lacking
    return work

  def _segment(self, work: '_Work', on_progress: Callable[[float], object]) -> None:
    if work.error:
      return
    with work.stage('segment'), contextlib.ExitStack() as stack:
      name = work.case.name
      replaced = () if name in self.extended else write_results.names_of(name)
      work.folder = stack.enter_context(staging.staged(self.output, replaced))
      scan = work.scan.volume
      if self.options.probabilities:
        with write_results.optional(work.folder / f'{name}_probabilities', work.missing):
          work.maps = write_results.ProbabilityMaps(work.folder.parent, scan, len(self.targets))

      def on_slab(slab):
        if work.maps is not None:
          work.maps.add(slab)
        on_progress(slab.shape[0] / len(scan.array))

      watch = self.explainer.watch() if self.explainer is not None else None
      work.found = self.segmenter(scan.array, scan.spacing, on_slab, clock=work.clock, watch=watch)
      work.routing = watch.maps() if watch is not None else None
      work.staging = stack.pop_all()

  def _write(self, work: '_Work') -> Result:
    status, rows, mirrored = 'ok', [], None
    if not work.error:
      with work.stage('write'), work.staging:
        mirrored = write_results.is_mirrored(work.found)
        rows = self._write_files(work, mirrored)
      notes = [*work.notes, *write_results.not_written(work.missing)]
      status = 'incomplete' if work.missing else status
      status = 'mirrored' if self.check_sides and mirrored else status
    if work.error:
      status, rows, notes = 'failed', [], [work.error]
    timings = work.clock.seconds()
    return Result(
      work.case.name,
      work.case.input,
      status,
      round(sum(timings.values()), 2),
      '; '.join(notes),
      timings,
      rows,
      missing=dict(work.missing),
    )

  def _write_files(self, work: '_Work', mirrored: bool | None) -> list[dict]:
    name = work.case.name
    if work.maps is not None:
      place = work.folder / f'{name}_probabilities'
      with write_results.optional(place, work.missing):
        work.maps.write(place, self.targets)
    if self.check_sides and mirrored:
      work.notes.append(mirrored_note(work.case))
    origin = {
      'input': work.case.input,
      **self.origin,
      'warnings': work.notes,
      'mirrored': mirrored,
      'request': {'scan': work.digest, **self.request},
    }
    return write_results.write_scan(
      work.folder,
      name,
      work.scan,
      work.found,
      self.targets,
      options=self.options,
      origin=origin,
      missing=work.missing,
      routing=work.routing,
    )


def mirrored_note(case: find_scans.Case) -> str:
  """What is told of a scan whose liver and spleen have changed sides."""
  return f'{case.input}: liver lies left of spleen; the scan or its header is mirrored'


class _Work:
  """A scan on its way through the stages; after an error the later ones do nothing."""

  def __init__(self, case: find_scans.Case):
    self.case = case
    self.clock = Clock()
    self.error = ''
    self.notes: list[str] = []
    self.missing: dict[str, str] = {}
    self.digest = ''
    self.scan: find_scans.Scan | None = None
    self.found: Segmentation | None = None
    self.routing: router_maps.RoutingMaps | None = None
    self.maps: write_results.ProbabilityMaps | None = None
    self.folder: pathlib.Path | None = None
    self.staging = contextlib.ExitStack()

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Times a block; keeps the reason of an error."""
    with self.clock(name):
      try:
        yield
      except Exception as error:  # whatever is wrong with one scan must not cost the others
        self.error = _reason(error, self.case.input)


def _reason(error: Exception, path: str) -> str:
  text = ' '.join(str(error).split())
  if isinstance(error, volume.VolumeError):
    return text
  if isinstance(error, UserError):
    return f'{path}: {text}'
  if isinstance(error, OSError):
    return f'{error.filename or path}: {error.strerror or text}; check the output folder'
  return f'{path}: {type(error).__name__}: {text}'
