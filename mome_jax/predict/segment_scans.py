"""Scans in, results on disk: a request from its first check to the record of the run."""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from input_pipeline.files import inventory
from input_pipeline.files.buckets import NO_DISK, is_in_bucket
from input_pipeline.progress import bar as progress_bar
from mome_jax.inference.model import Model
from mome_jax.predict import (
  dicom_source,
  earlier,
  find_scans,
  formats,
  plausible_masks,
  prompted_model,
  staging,
  write_results,
)
from mome_jax.predict.find_scans import ScanFiles
from mome_jax.predict.request import DEFAULTS, Options, PredictError, Request
from mome_jax.predict.result import Result
from mome_jax.predict.run_record import RunRecord
from mome_jax.predict.workers import Job

EXISTING = ('error', 'overwrite', 'skip')
_BAR = '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'


# Many keywords: a call names the few it needs, and they are the fields of one Request.
def predict(
  model: str | os.PathLike | Model | Sequence[str | os.PathLike],
  inputs: str | os.PathLike | Sequence[str | os.PathLike],
  output: str | os.PathLike,
  prompts: str | Sequence[str] | None = None,
  *,
  options: Options = DEFAULTS,
  existing: str = 'error',
  fast: bool = False,
  assume_spacing: Sequence[float] | None = None,
  volume_number: int | None = None,
  check_sides: bool = False,
  text_model: str | os.PathLike | None = None,
  rules: Sequence[str] | None = None,
  device: str | None = None,
  as_written: bool = False,
  force: bool = False,
  tta: bool | None = None,
  keep_absent: bool = False,
  progress: bool = True,
  on_result: Callable[[Result], object] = lambda result: None,
) -> list[Result]:
  """Segments scans and writes the results; a scan that fails does not stop the others.

  Args:
    model: folder of one, or several, as of `prompted_model.load`; or a `Predictor` or `Ensemble`,
      which several calls can share.
    inputs: NIfTI files, zip archives and folders, or one; see `find_scans.find_scans`.
    output: folder; created where missing.
    prompts: names of classes, synonyms or any text, or one; see `request.make_targets`. None is all
      classes of the model but the experimental ones.
    options: what to write besides labels and legend.
    existing: what to do with scans that have results: 'error', 'overwrite' or 'skip'.
    fast: let windows overlap by 0.25; the grid stays the same.
    assume_spacing: (3,) mm, in place of what NIfTI headers say.
    volume_number: which one of NIfTI files with several volumes, from 0 on.
    check_sides: call a scan mirrored where liver and spleen have changed sides.
    text_model: see `Predictor`.
    rules: of post-processing, names of `postprocess.RULES`; None is those of the model's config.
    device: where a model that is not loaded yet goes; see `find_devices`.
    as_written: prompts go to the text encoder as they are; no name or synonym is looked up.
    force: ask also for what the model was not trained on.
    tta: segment the mirror image too and average; None is what the model's config says.
    keep_absent: leave small masks that count as none; see `plausible_masks.judge_and_clean`.
    progress: show a bar, and notes as they come, on the standard error.
    on_result: called with each result when it is written.

  Returns:
    One result a scan, in order; see `segment`.

  Raises:
    CheckpointError: if there is no model, or it cannot be read.
    UserError: as `segment`.
  """
  request = Request(
    inputs=cast(Sequence[str | os.PathLike], inputs),  # a single one becomes a sequence there
    prompts=prompts,
    options=options,
    fast=fast,
    assume_spacing=assume_spacing,
    volume_number=volume_number,
    check_sides=check_sides,
    rules=rules,
    as_written=as_written,
    force=force,
    tta=tta,
    keep_absent=keep_absent,
  )
  load = functools.partial(prompted_model.load, model, text_model=text_model, device=device)
  return segment(load, request, output, existing=existing, progress=progress, on_result=on_result)


def segment(
  load: Callable[[], Model],
  request: Request,
  output: str | os.PathLike,
  *,
  existing: str = 'error',
  progress: bool = True,
  on_result: Callable[[Result], object] = lambda result: None,
) -> list[Result]:
  """Does what a request asks for; a scan that fails does not stop the others.

  Args:
    load: returns the model; called once the input and the output folder are known to be usable.
    request: what is asked for.
    output: folder; created where missing.
    existing: what to do with scans that have results: 'error', 'overwrite' or 'skip'.
    progress: show a bar, and notes as they come, on the standard error.
    on_result: called with each result when it is written.

  Returns:
    One result a scan, in order; `report.csv` and `manifest.json` in the output folder hold them,
    and are written anew after each scan.

  Raises:
    PredictError: if the output folder cannot be used, is full, or holds results of these scans, or
      no format is called as asked.
    ScanError: if there is no scan.
    PostprocessError, TextVectorError, UserError: if the model cannot do it; see
      `prompted_model.ask`.
  """
  if is_in_bucket(output):
    raise PredictError(f'{output} {NO_DISK}')
  output = pathlib.Path(output)
  record = RunRecord(output)
  if existing not in EXISTING:
    raise PredictError(f"existing={existing!r}: expected 'error', 'overwrite' or 'skip'")
  scans, notes = find_scans.find_scans(request.inputs, output=output)
  impossible = _impossible(request, scans)
  notes += write_results.not_written(impossible)
  _make_output(output, request.inputs)
  if existing == 'error':
    earlier.refuse(output, scans)
  model = prompted_model.ask(load(), request)
  if progress:
    for line in model.meanings:
      print(line, file=sys.stderr)
  notes += model.notes
  record.begin(request, model, notes, existing=existing)
  job = Job(request, model, output, impossible=impossible, overwrite=existing == 'overwrite')
  kept = earlier.results(output, scans, job) if existing == 'skip' else {}
  done = {name: result for name, result in kept.items() if result.status != 'ok'}
  extended = {name: result.labels for name, result in kept.items() if name not in done}
  job = dataclasses.replace(job, extended=extended)

  def write(result: Result) -> None:
    record.add(result)
    on_result(result)

  results = _segment_all(job, scans, done, notes, progress=progress, on_result=write)
  record.finish(results)
  return results


def _segment_all(
  job: Job,
  scans: Sequence[ScanFiles],
  done: Mapping[str, Result],
  notes: Sequence[str],
  *,
  progress: bool,
  on_result: Callable[[Result], object],
) -> list[Result]:
  """The results of all scans in order; those of `done`, by name, are not made again.

  The bar is of the others alone, so that it tells how long they take.
  """
  results = {}
  numbers = [number for number, scan in enumerate(scans) if scan.name not in done]
  hidden = not progress or not numbers
  with progress_bar(total=len(numbers), bar_format=_BAR, disable=hidden) as bar:

    def on_progress(scan: ScanFiles, share: float) -> None:
      bar.set_description(scan.name, refresh=False)
      bar.update(share)

    def finish(number: int, result: Result) -> None:
      results[number] = result
      # What is missing is told at the end, and of what is known not to be possible before too.
      if progress and result.message not in ('', _not_written(result)):
        kind = 'warning' if plausible_masks.implausible(result.labels) else 'note'
        kind = f'failed {result.case}' if result.status == 'failed' else kind
        bar.write(f'{kind}: {result.message}', file=sys.stderr)
      on_result(result)

    if progress:
      for note in notes:
        bar.write(f'note: {note}', file=sys.stderr)
    for number, scan in enumerate(scans):
      if scan.name in done:
        finish(number, done[scan.name])
    made = job.run([scans[number] for number in numbers], on_progress)
    for made_so_far, (number, result) in enumerate(zip(numbers, made, strict=True), 1):
      bar.update(max(0.0, made_so_far - bar.n))  # of one that failed there was no progress
      finish(number, result)
  return [results[number] for number in sorted(results)]


def _not_written(result: Result) -> str:
  return '; '.join(write_results.not_written(result.missing))


def _impossible(request: Request, scans: Sequence[ScanFiles]) -> dict[str, str]:
  """Outputs that the headers of the scans forbid, with the reason; raises what forbids all."""
  asked = formats.asked(request.options).values()
  for kind in asked:
    kind.require(kind.switch)
  kinds = [kind for kind in asked if kind.needs_series]
  others = [scan.input for scan in scans if scan.series is None and not scan.problem]
  if kinds and others:
    raise PredictError(
      f'{others[0]}: is not DICOM; {kinds[0].switch} needs the headers of a series'
    )
  return dicom_source.impossible(scans, [kind.end for kind in kinds]) if kinds else {}


def _make_output(output: pathlib.Path, inputs: Sequence[str | os.PathLike]) -> None:
  if any(pathlib.Path(path).resolve() == output.resolve() for path in inputs):
    raise PredictError(f'{output}: is the input too; masks there would be read as scans next time')
  if output.is_file():
    raise PredictError(f'{output}: is a file, no folder; change --output')
  if inventory.is_volume_name(output.name) and not output.exists():
    raise PredictError(f'{output}: names a file, and results are several; give a folder')
  try:
    output.mkdir(parents=True, exist_ok=True)
    staging.sweep(output)
    with staging.scratch(output):
      pass
  except OSError as error:
    raise PredictError(
      f'{output}: cannot be written ({error.strerror}); change --output'
    ) from error
