r"""CT in, segmentation out.

  python -m mome_jax.predict --demo --output out
  python -m mome_jax.predict --input scan.nii.gz --output out
  python -m mome_jax.predict --input scan.nii.gz --output out --prompts "left parotid, jaw bone"
  python -m mome_jax.predict --checkpoint MODEL --input FOLDER --output out \
      --prompts "liver, left kidney, tumor of the liver"
  python -m mome_jax.predict --checkpoint MODEL --input STUDY.zip --output out --dicom-seg
  python -m mome_jax.predict --checkpoint MODEL --input FOLDER --output out --skip-done --json

The input is NIfTI or DICOM, with the extra itk also NRRD and MetaImage: files, .zip archives, or
folders, searched to any depth. Every CT series is a scan of its own, and so is every phase of one;
localizers, other modalities, label maps and earlier results are left out with a note. What looks
like a scan and cannot be read is a failed row of the report.

Writes NAME_seg.nii.gz (labels on the scan's own grid), NAME_seg.json (legend, volumes, mean HU,
components) and NAME_preview.png for every scan; report.csv, volumes.csv and manifest.json of the
run. Names of the built-in classes and their synonyms, however they are spelled, keep the label of
the class; any other text is read by the text encoder and gets a label from 200 on, in the order
given, and a mask of its own in NAME_masks/. What each prompt was taken for is told. No mask depends
on what else is asked for. A prompt that means nothing which the model was trained on is refused
before anything is segmented; --force asks all the same, and marks the results.

Exit code 0 if everything asked for was done; 1 if a scan failed or lacks an output (all else is
written) or nothing could be done; 3 if --check-sides found a scan that looks mirrored.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Sequence

from input_pipeline import errors, stopping
from input_pipeline.cli import Once, Parser, dashed, spacing
from input_pipeline.files.text_files import read_text
from mome_jax import shipped
from mome_jax.inference import postprocess
from mome_jax.predict import formats, run_record
from mome_jax.predict.request import FAST_OVERLAP, PredictError
from mome_jax.predict.result import Result
from mome_jax.text.prompts import parse_prompts


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.predict', description=__doc__, allow_abbrev=False)
  _add_scans_and_prompts(parser)
  _add_results(parser)
  parser.add_argument(
    '--json', action='store_true', help='one JSON object a scan on the standard output'
  )
  parser.add_argument(
    '--quiet', action='store_true', help='no progress bar, no notes; failures are still told'
  )
  return parser


def _add_scans_and_prompts(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--checkpoint',
    nargs='+',
    default=[shipped.MODEL],
    metavar='MODEL',
    help='model folder, --workdir of a training, hf:ORG/NAME, or shipped (default), the model that '
    'comes with the package, for head and neck organs; of several the logits are averaged',
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    '-i',
    '--input',
    nargs='+',
    help='NIfTI, NRRD and MetaImage files, DICOM .zip files, folders of any',
  )
  source.add_argument(
    '--demo', action='store_true', help='the head and neck CT that comes with the package'
  )
  parser.add_argument('-o', '--output', required=True, help='folder for the results')
  asked = parser.add_mutually_exclusive_group()
  asked.add_argument(
    '--prompts',
    action=Once,
    help='names or any text, separated by commas; default: all but experimental classes',
  )
  asked.add_argument(
    '--prompts-file', metavar='FILE', help='one a line; blank lines and those with # are skipped'
  )
  parser.add_argument(
    '--as-written',
    action='store_true',
    help='prompts go to the text encoder as they are: no name or synonym is looked up',
  )
  parser.add_argument(
    '--force',
    action='store_true',
    help='ask also for what the model was not trained on; the results are marked',
  )
  parser.add_argument(
    '--text-model', help='folder of the text encoder of a model with frozen text, for new prompts'
  )


def _add_results(parser: argparse.ArgumentParser) -> None:
  for name, kind in formats.FORMATS.items():
    action = 'store_false' if formats.by_default(name) else 'store_true'
    parser.add_argument(kind.switch, action=action, help=kind.help, dest=f'write_{name}')
  parser.add_argument(
    '--probabilities', action='store_true', help='also one map a class, in NAME_probabilities/'
  )
  existing = parser.add_mutually_exclusive_group()
  existing.add_argument(
    '--overwrite', action='store_true', help='replace results of an earlier run'
  )
  existing.add_argument(
    '--skip-done',
    action='store_true',
    help='keep results of an earlier run with the same scans, model and options',
  )
  parser.add_argument(
    '--fast', action='store_true', help=f'windows overlap by {FAST_OVERLAP}, on the same grid'
  )
  parser.add_argument(
    '--tta',
    action='store_true',
    default=None,
    help='average with the mirror image, left and right exchanged: twice the time',
  )
  parser.add_argument(
    '--device', help='cpu, gpu, tpu, or one of them as gpu:1; default: all of the best kind'
  )
  parser.add_argument(
    '--assume-spacing',
    type=spacing,
    metavar='X,Y,Z',
    help='mm along the axes of the array, in place of what the header says; not for DICOM',
  )
  parser.add_argument(
    '--volume', type=int, metavar='N', help='of a file with several volumes, from 0 on'
  )
  parser.add_argument(
    '--check-sides', action='store_true', help='exit code 3 where liver lies left of spleen'
  )
  parser.add_argument(
    '--postprocess',
    metavar='RULES',
    help=f"separated by commas: {', '.join(postprocess.RULES)}; or none; default: the model's own",
  )
  parser.add_argument(
    '--keep-absent',
    action='store_true',
    help='keep small masks of classes that cannot be in the scan or look like nothing of the kind',
  )


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


def _print_json(output: str, result: Result) -> None:
  written = str(pathlib.Path(output, f'{result.case}_seg.nii.gz'))
  row = {**run_record.row(result), 'output': None if result.status == 'failed' else written,
         'timings': result.timings, 'labels': result.labels}  # fmt: skip
  print(json.dumps(row), flush=True)


def _predict_as_told(args: argparse.Namespace) -> list[Result]:
  from mome_jax.predict.segment_scans import predict

  return predict(
    args.checkpoint,
    [shipped.SCAN] if args.demo else args.input,
    args.output,
    _read_prompts(args),
    options=formats.make_options(
      [name for name in formats.FORMATS if getattr(args, f'write_{name}')],
      probabilities=args.probabilities,
    ),
    existing='overwrite' if args.overwrite else 'skip' if args.skip_done else 'error',
    fast=args.fast,
    assume_spacing=args.assume_spacing,
    volume_number=args.volume,
    check_sides=args.check_sides,
    text_model=args.text_model,
    rules=None if args.postprocess is None else postprocess.parse(args.postprocess),
    device=args.device,
    as_written=args.as_written,
    force=args.force,
    tta=args.tta,
    keep_absent=args.keep_absent,
    progress=not args.quiet,
    on_result=functools.partial(_print_json, args.output) if args.json else lambda result: None,
  )


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.predict import write_results
  from mome_jax.runtime import process

  process.prepare()
  try:
    results = _predict_as_told(args)
  except KeyboardInterrupt as stopped:
    number = stopping.number_of(stopped)
    instead = ' in place of --overwrite' if args.overwrite else ''
    print(
      f'stopped by {number.name}: what {args.output} holds is whole; the same command with '
      f'--skip-done{instead} goes on',
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
