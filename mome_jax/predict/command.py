r"""CT in, segmentation out.

  python -m mome_jax.predict --demo --output out
  python -m mome_jax.predict --input scan.nii.gz --output out
  python -m mome_jax.predict --input scan.nii.gz --output out --prompts "left parotid, jaw bone"
  python -m mome_jax.predict --checkpoint MODEL --input FOLDER --output out \
      --prompts "liver, left kidney, tumor of the liver"
  python -m mome_jax.predict --checkpoint MODEL --input STUDY.zip --output out --dicom-seg
  python -m mome_jax.predict --checkpoint MODEL --input FOLDER --output out --skip-done --json

The input is NIfTI or DICOM: files, .zip archives, or folders, searched to any depth. Every CT
series is a scan of its own, and so is every phase of one; localizers, other modalities, label maps
and earlier results are left out with a note. What looks like a scan and cannot be read is a failed
row of the report.

Writes NAME_seg.nii.gz (labels on the scan's own grid), NAME_seg.json (legend, volumes, mean HU,
components) and NAME_preview.png for every scan; report.csv and manifest.json of the run. Names of
the built-in classes keep their label; any other text is read by the text encoder and gets a label
from 200 on, in the order given.

Exit code 0 if everything asked for was done; 1 if a scan failed or lacks an output (all else is
written) or nothing could be done; 3 if --check-sides found a scan that looks mirrored.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence

import jax
from absl import logging

import mome_jax
from input_pipeline import errors, stopping
from input_pipeline.cli import Parser, dashed, spacing
from input_pipeline.progress import bar as progress_bar
from input_pipeline.text_files import read_text
from mome_jax.errors import UserError
from mome_jax.inference import postprocess, router_maps
from mome_jax.inference.loaded_model import SHIPPED, Predictor
from mome_jax.predict import (
  dicom_seg,
  earlier,
  find_scans,
  manifest,
  provenance,
  run_record,
  staging,
  write_results,
)
from mome_jax.predict.workers import Job, Result
from mome_jax.text.prompts import parse_prompts
from mome_jax.training import compilation

FAST_OVERLAP = 0.25  # of --fast: about a third of the windows of 0.5
DEMO = pathlib.Path(mome_jax.__file__).parent / 'assets' / 'demo' / 'head_neck.nii.gz'
_BAR = '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'


class PredictError(UserError):
  """What was asked for cannot be done; the message names the fix."""


# ---------------------------------------------------------------------------- prediction
def predict(
  model: str | os.PathLike | Predictor,
  inputs: Sequence[str | os.PathLike],
  output: str | os.PathLike,
  prompts: Sequence[str] | None = None,
  *,
  options: write_results.Options = write_results.DEFAULTS,
  existing: str = 'error',
  fast: bool = False,
  assume_spacing: Sequence[float] | None = None,
  volume_number: int | None = None,
  check_sides: bool = False,
  text_model: str | os.PathLike | None = None,
  rules: Sequence[str] | None = None,
  device: str | None = None,
  progress: bool = True,
  on_result: Callable[[Result], object] = lambda result: None,
) -> list[Result]:
  """Segments scans and writes the results; a scan that fails does not stop the others.

  Args:
    model: model folder, training workdir or one of its `checkpoints/STEP`; or a `Predictor`, which
      several calls can share.
    inputs: NIfTI files, zip archives and folders; see `find_scans.find_cases`.
    output: folder; created where missing.
    prompts: class names or any text; None is the classes that the model was trained on.
    options: what to write besides labels and legend.
    existing: what to do with scans whose results are there: 'error', 'overwrite' or 'skip'.
    fast: let windows overlap by 0.25; the grid stays the same.
    assume_spacing: (3,) mm, in place of what NIfTI headers say.
    volume_number: which one of NIfTI files with several volumes, from 0 on.
    check_sides: call a scan mirrored where liver and spleen have changed sides.
    rules: of post-processing, names of `postprocess.RULES`; None is those of the model's config.
    text_model: see `Predictor`.
    device: where a model that is not loaded yet goes; see `find_devices`.
    progress: show a bar, and notes as they come, on the standard error.
    on_result: called with each result when it is written.

  Returns:
    One result a scan, in order; `report.csv` and `manifest.json` in the output folder hold them,
    and are written anew after each scan.

  Raises:
    PredictError: if the output folder cannot be used, is full, or holds results of these scans.
    ScanError: if there is no scan.
    CheckpointError, TextVectorError: if the model cannot be used.
    ValueError: if a prompt comes twice or there are too many, or a rule is unknown.
  """
  started, start = datetime.datetime.now(datetime.UTC), time.perf_counter()
  if existing not in ('error', 'overwrite', 'skip'):
    raise PredictError(f"existing={existing!r}: expected 'error', 'overwrite' or 'skip'")
  output, impossible = pathlib.Path(output), {}
  cases, notes = find_scans.find_cases(inputs, output=output)
  if options.dicom_seg:
    _need_dicom(cases)
    impossible = dicom_seg.impossible(cases)
    notes += write_results.not_written(impossible)
  _make_output(output, inputs)
  if existing == 'error':
    _refuse_existing(output, cases)
  predictor = model
  if isinstance(model, str | os.PathLike):
    predictor = Predictor(model, text_model=text_model, devices=find_devices(device))
  targets = write_results.make_targets(prompts or predictor.config.classes, predictor.template)
  names = [target.name for target in targets]
  if check_sides and not {'liver', 'spleen'} <= set(names):
    raise PredictError('--check-sides compares liver and spleen: name both in --prompts')
  untrained = set(names) & set(predictor.template.names()) - set(predictor.config.classes)
  if untrained:
    notes.append(
      f'the model was not trained on {", ".join(sorted(untrained))}: do not trust it there'
    )
  texts = [target.prompt for target in targets]
  overlap = FAST_OVERLAP if fast else None
  segmenter = predictor.segmenter(names, texts, rules=rules, overlap=overlap)
  explainer = None
  if options.report:
    explainer = router_maps.make_explainer(predictor, names, texts, segmenter)
  model_record = manifest.describe(predictor)
  job = Job(
    segmenter=segmenter,
    targets=targets,
    output=output,
    read=functools.partial(find_scans.read, assume_spacing=assume_spacing, number=volume_number),
    options=options,
    check_sides=check_sides,
    origin={'checkpoint': predictor.path, 'step': predictor.step},
    request=provenance.of_run(
      predictor,
      segmenter,
      texts,
      weights=model_record['checkpoint']['sha256'],
      assume_spacing=assume_spacing,
      volume_number=volume_number,
    ),
    explainer=explainer,
    impossible=impossible,
  )
  settings = {**dataclasses.asdict(options), 'existing': existing, 'fast': fast,
              'assume_spacing': assume_spacing, 'volume_number': volume_number,
              'check_sides': check_sides, 'postprocess': segmenter.settings.rules}  # fmt: skip
  record = {
    'started': started.isoformat(timespec='seconds'),
    **manifest.environment(),
    **model_record,
    'prompts': [dataclasses.asdict(target) for target in targets],
    'options': settings,
    'notes': notes,
  }
  loaded = time.perf_counter() - start

  def write_record(results, *, finished):
    seconds = {'load': round(loaded, 2), 'total': round(time.perf_counter() - start, 2)}
    told = {**record, 'finished': finished, 'seconds': seconds}
    try:
      run_record.write(output, told, results, names)
    except OSError as error:
      raise PredictError(f'{output}: cannot be written ({error.strerror})') from error

  so_far = []

  def keep(result):
    so_far.append(result)
    write_record(so_far, finished=False)
    on_result(result)

  write_record([], finished=False)  # those of an earlier run do not stand for this one
  before = earlier.results(output, cases, job) if existing == 'skip' else {}
  done = {name: result for name, result in before.items() if result.status != 'ok'}
  job = dataclasses.replace(job, extended=before.keys() - done.keys())
  results = _run(job, cases, done, notes, progress=progress, on_result=keep)
  write_record(results, finished=True)
  return results


def _run(job, cases, done, notes, *, progress, on_result) -> list[Result]:
  """The results of all cases in order; those of `done`, by name, are not made again."""
  results = {}
  open_cases = [case for case in cases if case.name not in done]
  with progress_bar(total=len(cases), bar_format=_BAR, disable=not progress) as bar:

    def on_progress(case, share):
      bar.set_description(case.name, refresh=False)
      bar.update(share)

    def finish(number, result):
      results[number] = result
      # What is missing is told at the end, and of what is known not to be possible before too.
      if (
        result.message not in ('', '; '.join(write_results.not_written(result.missing)))
        and progress
      ):
        kind = f'failed {result.case}' if result.status == 'failed' else 'note'
        bar.write(f'{kind}: {result.message}', file=sys.stderr)
      on_result(result)

    if progress:
      for note in notes:
        bar.write(f'note: {note}', file=sys.stderr)
    for number, case in enumerate(cases):
      if case.name in done:
        finish(number, done[case.name])
    numbers = [number for number, case in enumerate(cases) if case.name not in done]
    for number, result in zip(numbers, job.run(open_cases, on_progress), strict=True):
      finish(number, result)
    bar.update(len(cases) - bar.n)
  return [results[number] for number in sorted(results)]


def _need_dicom(cases: Sequence[find_scans.Case]) -> None:
  others = [case.input for case in cases if case.series is None and not case.problem]
  if others:
    raise PredictError(f'{others[0]}: is not DICOM; --dicom-seg needs the headers of a series')


def _make_output(output: pathlib.Path, inputs: Sequence[str | os.PathLike]) -> None:
  if any(pathlib.Path(path).resolve() == output.resolve() for path in inputs):
    raise PredictError(f'{output}: is the input too; masks there would be read as scans next time')
  try:
    output.mkdir(parents=True, exist_ok=True)
    staging.sweep(output)
    with staging.scratch(output):
      pass
  except OSError as error:
    raise PredictError(
      f'{output}: cannot be written ({error.strerror}); change --output'
    ) from error


def _refuse_existing(output: pathlib.Path, cases: Sequence[find_scans.Case]) -> None:
  there = [
    name for case in cases for name in write_results.names_of(case.name) if (output / name).exists()
  ]
  if there:
    more = f' and {len(there) - 1} more' if len(there) > 1 else ''
    raise PredictError(
      f'{output}/{there[0]}{more}: results of an earlier run; pass --overwrite or --skip-done, or '
      'change --output'
    )


# ---------------------------------------------------------------------------- command line
def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(
    prog='python -m mome_jax.predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--checkpoint',
    default=SHIPPED,
    help='model folder, or --workdir of a training; default: the model that comes with the '
    'package, for head and neck organs',
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--input', nargs='+', help='NIfTI files, DICOM .zip files, folders of either')
  source.add_argument(
    '--demo', action='store_true', help='the head and neck CT that comes with the package'
  )
  parser.add_argument('--output', required=True, help='folder for the results')
  asked = parser.add_mutually_exclusive_group()
  asked.add_argument('--prompts', help='names or any text, separated by commas; default: all')
  asked.add_argument(
    '--prompts-file', metavar='FILE', help='one a line; blank lines and those with # are skipped'
  )
  parser.add_argument(
    '--text-model', help='folder of the T5 checkpoint of a model with frozen text, for new prompts'
  )
  parser.add_argument(
    '--masks', action='store_true', help='also one binary file a class, in NAME_masks/'
  )
  parser.add_argument(
    '--probabilities', action='store_true', help='also one map a class, in NAME_probabilities/'
  )
  parser.add_argument(
    '--dicom-seg', action='store_true', help='also NAME_seg.dcm, a DICOM SEG; for DICOM input'
  )
  there = parser.add_mutually_exclusive_group()
  there.add_argument('--overwrite', action='store_true', help='replace results of an earlier run')
  there.add_argument(
    '--skip-done',
    action='store_true',
    help='keep results of an earlier run with the same scans, model and options',
  )
  parser.add_argument(
    '--fast', action='store_true', help=f'windows overlap by {FAST_OVERLAP}, on the same grid'
  )
  parser.add_argument(
    '--device', help='cpu, gpu, tpu, or one of them as gpu:1; default: all of the best kind'
  )
  parser.add_argument(
    '--assume-spacing', type=spacing, metavar='X,Y,Z', help='mm, in place of what the header says'
  )
  parser.add_argument(
    '--volume', type=int, metavar='N', help='of a file with several volumes, from 0 on'
  )
  parser.add_argument(
    '--report',
    action='store_true',
    help='also NAME_report.html, a viewer that opens offline: slices, classes, volumes, routing',
  )
  parser.add_argument('--no-preview', action='store_true', help='no NAME_preview.png')
  parser.add_argument(
    '--check-sides', action='store_true', help='exit code 3 where liver lies left of spleen'
  )
  parser.add_argument(
    '--postprocess',
    metavar='RULES',
    help=f"separated by commas: {', '.join(postprocess.RULES)}; or none; default: the model's own",
  )
  parser.add_argument(
    '--json', action='store_true', help='one JSON object a scan on the standard output'
  )
  parser.add_argument(
    '--quiet', action='store_true', help='no progress bar, no notes; failures are still told'
  )
  return parser


def _read_prompts(args: argparse.Namespace) -> list[str] | None:
  if args.prompts is not None:
    return parse_prompts(args.prompts)
  if args.prompts_file is None:
    return None
  try:
    lines = read_text(args.prompts_file).splitlines()
  except OSError as error:
    raise PredictError(f'{args.prompts_file}: cannot be read as text ({error})') from error
  prompts = [' '.join(line.split()) for line in lines if line.strip() and line.strip()[0] != '#']
  if not prompts:
    raise PredictError(f'{args.prompts_file}: no prompt in it; write one a line')
  return prompts


def find_devices(name: str | None) -> list | None:
  """JAX devices by name: a platform, or one of its devices as 'gpu:1'; None is all there are.

  Raises:
    PredictError: if there is none; the message lists what there is.
  """
  if name is None:
    return None
  words = re.fullmatch('([a-z]+)(?::([0-9]+))?', name)
  try:
    devices = jax.local_devices(backend=words[1])
    return devices if words[2] is None else [devices[int(words[2])]]
  except (RuntimeError, TypeError, IndexError) as error:
    names = [f'{device.platform}:{n}' for n, device in enumerate(jax.local_devices())]
    known = ', '.join(dict.fromkeys([*names, 'cpu']))
    raise PredictError(f'--device {name}: no such device; there is {known}') from error


def _print_json(output: str, result: Result) -> None:
  written = str(pathlib.Path(output, f'{result.case}_seg.nii.gz'))
  row = {**run_record.row(result), 'output': None if result.status == 'failed' else written,
         'timings': result.timings, 'labels': result.labels}  # fmt: skip
  print(json.dumps(row), flush=True)


def _predict_as_told(args: argparse.Namespace) -> list[Result]:
  return predict(
    args.checkpoint,
    [DEMO] if args.demo else args.input,
    args.output,
    _read_prompts(args),
    options=write_results.Options(
      args.masks, args.probabilities, not args.no_preview, args.report, args.dicom_seg
    ),
    existing='overwrite' if args.overwrite else 'skip' if args.skip_done else 'error',
    fast=args.fast,
    assume_spacing=args.assume_spacing,
    volume_number=args.volume,
    check_sides=args.check_sides,
    text_model=args.text_model,
    rules=None if args.postprocess is None else postprocess.parse(args.postprocess),
    device=args.device,
    progress=not args.quiet,
    on_result=functools.partial(_print_json, args.output) if args.json else lambda result: None,
  )


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is normal
  compilation.use_cache()
  try:
    results = _predict_as_told(args)
  except KeyboardInterrupt as stopped:
    number = stopping.number_of(stopped)
    print(
      f'stopped by {number.name}: what {args.output} holds is whole; the same command with '
      '--skip-done goes on',
      file=sys.stderr,
    )
    return 128 + number
  failed = [result for result in results if result.status == 'failed']
  incomplete = [result for result in results if result.missing]
  if not args.quiet:
    kept = sum(result.kept for result in results)
    text = f'{len(results) - len(failed) - kept} of {len(results)} scans segmented'
    text += f', {kept} were done' if kept else ''
    print(f'{text}; results in {args.output}', file=sys.stderr if args.json else sys.stdout)
  for result in failed if args.quiet else ():  # else told as they came
    print(f'failed {result.case}: {result.message}', file=sys.stderr)
  for result in incomplete:
    told = '; '.join(write_results.not_written(result.missing))
    print(f'incomplete {result.case}: {told}', file=sys.stderr)
  if failed or incomplete:
    return 1
  return 3 if any(result.status == 'mirrored' for result in results) else 0
