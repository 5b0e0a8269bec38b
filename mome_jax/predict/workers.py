"""Reading, segmenting and writing scans: three stages of a line, each busy with another scan."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from input_pipeline import remarks
from input_pipeline.ct import volume
from mome_jax.errors import UserError, few, one_line, printable
from mome_jax.inference import router_maps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.inference.slabs import Planes
from mome_jax.inference.stage_clock import Clock
from mome_jax.plausibility.judge import Judgement
from mome_jax.predict import (
  class_statistics,
  dicom_source,
  formats,
  plausible_masks,
  provenance,
  staging,
  verdicts,
  write_results,
)
from mome_jax.predict.find_scans import LoadedScan, ScanFiles
from mome_jax.predict.probability_maps import ProbabilityMaps
from mome_jax.predict.prompted_model import PromptedModel
from mome_jax.predict.request import Options, Request
from mome_jax.predict.result import Result
from mome_jax.predict.uncertainty import Uncertainty

_SOON = 0.5  # seconds, in which small scans are read and most of what is wrong is seen
UNCHECKED = 'sides not checked: that needs a liver and a spleen'


@dataclasses.dataclass(frozen=True)
class Job:
  """What is done to every scan.

  Attributes:
    request: what is asked for.
    model: that has read its prompts.
    output: existing folder.
    extended: scans whose earlier results are of this request too, and stay beside what is written
      now, by name: the rows of their legends.
    impossible: outputs that are known not to be possible before, with the reason.
    overwrite: whether results that another run makes meanwhile are replaced.
  """

  request: Request
  model: PromptedModel
  output: pathlib.Path
  extended: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
  impossible: Mapping[str, str] = dataclasses.field(default_factory=dict)
  overwrite: bool = True

  def run(
    self,
    scans: Sequence[ScanFiles],
    on_progress: Callable[[ScanFiles, float], object] = lambda scan, share: None,
  ) -> Iterator[Result]:
    """Yields the result of each scan, in order; whatever goes wrong with one is in its result.

    While one scan is segmented the next is read and the one before is written, so that three of
    them are in memory at most. Only this thread computes. Where it is stopped, the scan that is
    being written still comes.

    Args:
      scans: to be segmented.
      on_progress: called with the scan and the share of it that was segmented last.
    """
    with ThreadPoolExecutor(1, 'read') as reader, ThreadPoolExecutor(1, 'write') as writer:
      reading = [reader.submit(self._read, scan) for scan in scans[:1]]
      writing: Future[Result] | None = None
      self._compile_meanwhile(reading)
      try:
        for number, scan in enumerate(scans):
          work = reading.pop().result()
          reading += [reader.submit(self._read, scan) for scan in scans[number + 1 : number + 2]]
          try:
            self._segment(work, functools.partial(on_progress, scan))
            if writing is not None:
              written, writing = writing.result(), None
              yield written
          except BaseException:  # stopped: nothing of this scan is written
            work.staging.__exit__(*sys.exc_info())
            raise
          writing = writer.submit(self._write, work)
          del work
        if writing is not None:
          written, writing = writing.result(), None
          yield written
      except KeyboardInterrupt:  # its files are there: no table may lack them
        if writing is not None:
          yield writing.result()
        raise

  def _compile_meanwhile(self, reading: Sequence[Future['_Work']]) -> None:
    """Compiles while the first scan is read, unless that is over soon."""
    if wait(reading, _SOON).not_done and self.model.explainer is None:
      with contextlib.suppress(Exception):  # the scan meets it again, and tells it as its own
        self.model.segmenter.compile()

  def _read(self, scan: ScanFiles) -> '_Work':
    work = _Work(scan)
    with work.stage('read'), remarks.collected() as lines:
      work.loaded = self.request.read(scan)
      work.digest = provenance.of_scan(scan)
    work.notes = lines if not work.error else []
    if not work.error and work.loaded.series is not None:
      kinds = formats.asked(self.request.options).values()
      ends = [kind.end for kind in kinds if kind.needs_series]
      lacking = dicom_source.lacking(work.loaded.series.headers) if ends else ''
      work.notes += dicom_source.left_empty(work.loaded.series.headers[0]) if ends else []
      work.missing |= {f'{scan.name}_{end}': lacking for end in ends if lacking}
    return work

  def _segment(self, work: '_Work', on_progress: Callable[[float], object]) -> None:
    if work.error:
      return
    with work.stage('segment'), contextlib.ExitStack() as stack:
      name, scan = work.files.name, work.loaded.volume
      extends = name in self.extended
      replaced = () if extends else formats.possible(name)
      legend = '' if extends or self.overwrite else f'{name}_seg.json'
      work.folder = stack.enter_context(staging.staged(self.output, replaced, unless=legend))
      if self.request.options.probabilities:
        with write_results.optional(work.folder / f'{name}_probabilities', work.missing):
          work.maps = ProbabilityMaps(work.folder.parent, scan, self.model.columns)

      work.uncertainty = Uncertainty(self.model.columns)

      def on_slab(slab: Planes) -> None:
        if work.maps is not None:
          work.maps.add(slab)
        work.uncertainty.add(slab)
        on_progress(slab.shape[0] / len(scan.array))

      explainer = self.model.explainer
      watch = explainer.watch() if explainer is not None else None
      work.segmentation = self.model.segmenter(
        scan.array, tuple(scan.spacing), on_slab, clock=work.clock, watch=watch
      )
      work.routing = watch.maps() if watch is not None else None
      work.staging = stack.pop_all()

  def _write(self, work: '_Work') -> Result:
    status, rows, notes, mirrored = 'ok', [], [], None
    if not work.error:
      with work.stage('write'), work.staging:
        work.segmentation, work.judgement = plausible_masks.judge_and_clean(
          work.loaded.volume,
          work.segmentation,
          self.model.records,
          keep_absent=self.request.keep_absent,
        )
        mirrored = class_statistics.is_mirrored(work.segmentation)
        rows = self._write_files(work, mirrored)
      notes = [*work.notes, *write_results.not_written(work.missing)]
      if not work.error:
        notes += self._left_out(work, rows, mirrored)
      status = 'incomplete' if work.missing else status
      status = 'mirrored' if self.request.check_sides and mirrored else status
    if work.error:
      status, rows, notes = 'failed', [], [work.error]
    timings = work.clock.seconds()
    return Result(
      work.files.name,
      work.files.input,
      status,
      round(sum(timings.values()), 2),
      joined(notes, work.files.input),
      timings,
      rows,
      missing=dict(work.missing),
      series_uid=work.files.series_uid,
    )

  def _write_files(self, work: '_Work', mirrored: bool | None) -> list[dict[str, Any]]:
    name = work.files.name
    if work.maps is not None:
      place = work.folder / f'{name}_probabilities'
      with write_results.optional(place, work.missing):
        work.maps.write(place, self.model.targets)
    if self.request.check_sides and mirrored:
      work.notes.append(mirrored_note(work.files))
    names = [target.name for target in self.model.targets]
    work.notes += plausible_masks.notes(work.files.input, work.judgement, names)
    free = work.segmentation.free
    work.notes += verdicts.unanswered(work.files.input, self.model.targets, free)
    origin = write_results.origin_of(
      work.files, work.digest, self.model, work.judgement, mirrored=mirrored, warnings=work.notes
    )
    return write_results.write_scan(
      work.folder,
      formats.SegmentedScan(
        name,
        work.loaded,
        work.segmentation,
        self.model.targets,
        routing=work.routing,
        judgement=work.judgement,
        unsure=dict(zip(names, work.uncertainty.shares(), strict=True)),
      ),
      options=self._options(name),
      origin=origin,
      missing=work.missing,
    )

  def _left_out(
    self, work: '_Work', rows: Sequence[Mapping[str, Any]], mirrored: bool | None
  ) -> list[str]:
    """What was asked for, and is not there as nothing was found."""
    told = self.not_found(work.files.input, rows)
    if not any(row['components'] for row in rows):
      kinds = formats.asked(self.request.options).values()
      names = [f'{work.files.name}_{kind.end}' for kind in kinds if kind.needs_voxels]
      told += [f'{few(names)} not written: no class has a voxel'] if names else []
    if self.request.check_sides and mirrored is None:
      told.append(UNCHECKED)
    return told

  def not_found(self, path: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note on classes that prompts ask for and a scan, by the rows of its legend, has not."""
    # Told already, with a hint or as removed.
    told = {target.name for target in self.model.targets if target.nearest}
    told |= {row['name'] for row in rows if row.get('removed_ml')}
    empty = [row['name'] for row in rows if not row['components'] and row['name'] not in told]
    if not empty or self.request.prompts is None:  # by default it is asked for all there is
      return []
    return [f'{path}: nothing was found for {few(empty)}']

  def _options(self, name: str) -> Options:
    """What is written of a scan; where it is extended, what belongs together is made anew as one.

    That is the folder of masks, and a Structured Report with the SEG whose UID it refers to.
    """
    options, rows = self.request.options, self.extended.get(name)
    if rows is None:
      return options
    free = self.model.segmenter.free
    masks = any(row.get('mask') and row['name'] not in free for row in rows)
    options = dataclasses.replace(options, masks=masks or options.masks)
    report = (self.output / f'{name}_{formats.FORMATS["dicom_sr"].end}').exists()
    segments = (self.output / f'{name}_{formats.FORMATS["dicom_seg"].end}').exists()
    if options.dicom_seg and report and 'dicom_sr' not in options.more:
      options = dataclasses.replace(options, more=(*options.more, 'dicom_sr'))
    if 'dicom_sr' in options.more and segments:
      options = dataclasses.replace(options, dicom_seg=True)
    return options


def joined(notes: Sequence[str], path: str) -> str:
  """Notes on a scan in one line, in which its path is said once."""
  head = f'{path}: '
  told: list[str] = []
  for note in notes:
    told.append(note.removeprefix(head) if any(t.startswith(head) for t in told) else note)
  return printable('; '.join(told))


def mirrored_note(scan: ScanFiles) -> str:
  """What is told of a scan whose liver and spleen have changed sides."""
  return f'{scan.input}: liver lies left of spleen; the scan or its header is mirrored'


class _Work:
  """A scan on its way through the stages; after an error the later ones do nothing.

  Attributes without a value get one in a stage: `loaded` and `digest` when it is read, `folder`,
  `segmentation` and `uncertainty` when it is segmented.
  """

  loaded: LoadedScan
  digest: str
  folder: pathlib.Path
  segmentation: Segmentation
  uncertainty: Uncertainty

  def __init__(self, files: ScanFiles):
    self.files = files
    self.clock = Clock()
    self.error = ''
    self.notes: list[str] = []
    self.missing: dict[str, str] = {}
    self.judgement: Judgement | None = None
    self.routing: router_maps.RoutingMaps | None = None
    self.maps: ProbabilityMaps | None = None
    self.staging = contextlib.ExitStack()

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Times a block; keeps the reason of an error."""
    with self.clock(name):
      try:
        yield
      except Exception as error:  # whatever is wrong with one scan must not cost the others
        self.error = _reason(error, self.files.input, name)
        if not isinstance(error, UserError | OSError | MemoryError):  # of this program: report it
          traceback.print_exc()


def _reason(error: Exception, path: str, stage: str) -> str:
  text = one_line(error)
  if isinstance(error, volume.VolumeError):
    return text
  if isinstance(error, UserError):
    return f'{path}: {text}'
  if isinstance(error, OSError):
    told = f'{error.filename or path}: {error.strerror or text}'
    return f'{told}; copy the scan again' if stage == 'read' else f'{told}; check the output folder'
  if isinstance(error, MemoryError):
    return f'{path}: not enough memory ({text}); ask for fewer outputs or prompts at a time'
  return f'{path}: {type(error).__name__}: {text}'
