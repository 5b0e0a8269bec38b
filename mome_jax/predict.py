r"""CT in, segmentation out.

  python -m mome_jax.predict --checkpoint runs/demo --input scan.nii.gz --output out
  python -m mome_jax.predict --checkpoint MODEL --input FOLDER --output out \
      --prompts "liver, left kidney, tumor of the liver"

Writes NAME_seg.nii.gz (labels on the scan's own grid), NAME_seg.json (legend and volumes) and
NAME_preview.png for every scan, and report.csv. Names of the built-in classes keep their label; any
other text is read by the text encoder and gets a label from 200 on, in the order given.

Exit code 0 if every scan was segmented; 1 if one failed (the others are written) or nothing could
be done; 3 if --check-sides found a scan that looks mirrored.
"""

import argparse
import csv
import dataclasses
import functools
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import tqdm
from absl import logging

from input_pipeline import volume
from input_pipeline.options import dashed, spacing
from mome_jax import explain, outputs, postprocess
from mome_jax.predictor import Predictor, use_compilation_cache
from mome_jax.segment import NonFiniteLogitsError, Segmenter
from mome_jax.text.prompts import parse_prompts

_SCANS = ('.nii.gz', '.nii')
# What people expect to be segmented when it lies in the folder; anything else is passed over.
_OTHER_IMAGES = ('.nrrd', '.nhdr', '.mha', '.mhd', '.mgz', '.hdr', '.img', '.dcm', '.gz', '.zip')
_BAR = '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'


class PredictError(ValueError):
  """What was asked for cannot be done; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of one scan.

  Attributes:
    case: NAME in the outputs' names.
    input: the scan.
    status: 'ok', 'mirrored' (written, but liver and spleen have changed sides) or 'failed'.
    seconds: reading, segmenting and writing.
    message: why it failed, or what was odd about it.
  """

  case: str
  input: str
  status: str
  seconds: float
  message: str


# ---------------------------------------------------------------------------- which scans
def find_scans(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
  """The scans of files and folders: `*.nii.gz` and `*.nii` directly in a folder, sorted.

  Images in other formats are listed too, so that they show up as failed rather than not at all.

  Raises:
    PredictError: if a path does not exist, or a folder holds no scan.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if path.is_file():
      found.append(path)
    elif path.is_dir():
      files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith('.'))
      scans = [p for p in files if p.name.lower().endswith((*_SCANS, *_OTHER_IMAGES))]
      if not scans:
        raise PredictError(f'{path}: no .nii.gz or .nii file directly in this folder')
      found += scans
    else:
      raise PredictError(f'{path}: no such file or folder; correct --input')
  return found


def stem(path: pathlib.Path) -> str:
  """NAME of a scan: its file name without .nii.gz or .nii."""
  for ending in _SCANS:
    if path.name.lower().endswith(ending):
      return path.name[: -len(ending)]
  return path.name


# ---------------------------------------------------------------------------- prediction
def predict(
  model: str | os.PathLike | Predictor,
  scans: Sequence[str | os.PathLike],
  output: str | os.PathLike,
  prompts: Sequence[str] | None = None,
  *,
  read: Callable[[pathlib.Path], volume.Volume] = volume.read_image,
  options: outputs.Options = outputs.DEFAULTS,
  check_sides: bool = False,
  text_model: str | os.PathLike | None = None,
  rules: Sequence[str] | None = None,
) -> list[Result]:
  """Segments scans and writes the results; a scan that fails does not stop the others.

  Args:
    model: model folder, training workdir or one of its `checkpoints/STEP`; or a `Predictor`, which
      several calls can share.
    scans: files and folders.
    output: folder; created where missing.
    prompts: class names or any text; None is the classes that the model was trained on.
    read: file -> scan.
    options: what to write besides labels and legend.
    text_model: see `Predictor`.
    check_sides: call a scan mirrored where liver and spleen have changed sides.
    rules: of post-processing, names of `postprocess.RULES`; None is those of the model's config.

  Returns:
    One result a scan, in order; `report.csv` in the output folder holds the same.

  Raises:
    PredictError: if there is no scan, or the output folder cannot be used.
    CheckpointError, TextVectorError: if the model cannot be used.
    ValueError: if a prompt comes twice or there are too many, or a rule is unknown.
  """
  paths, output = find_scans(scans), pathlib.Path(output)
  _make_output(output, scans)
  predictor = model
  if isinstance(model, str | os.PathLike):
    predictor = Predictor(model, text_model=text_model)
  targets = outputs.make_targets(prompts or predictor.config.classes, predictor.template)
  names = [target.name for target in targets]
  if check_sides and not {'liver', 'spleen'} <= set(names):
    raise PredictError('--check-sides compares liver and spleen: name both in --prompts')
  segmenter = predictor.segmenter(names, [target.prompt for target in targets], rules=rules)
  job = Job(
    segmenter=segmenter,
    targets=targets,
    output=output,
    read=read,
    options=options,
    check_sides=check_sides,
    origin={'checkpoint': predictor.path, 'step': predictor.step},
    explainer=explain.make_explainer(predictor, targets, segmenter) if options.report else None,
  )
  stems = [stem(path) for path in paths]
  results = []
  with tqdm.tqdm(total=len(paths), bar_format=_BAR) as bar:
    for path, name in zip(paths, stems, strict=True):
      bar.set_description(name)
      twins = [p.name for p in paths if stem(p) == name]
      results.append(job(path, name, twins=twins, on_progress=bar.update))
      if results[-1].message:
        kind = 'failed' if results[-1].status == 'failed' else 'note'
        bar.write(f'{kind}: {results[-1].message}', file=sys.stderr)
      bar.update(len(results) - bar.n)
  _write_report(output / 'report.csv', results)
  return results


@dataclasses.dataclass(frozen=True)
class Job:
  """What is done to every scan.

  Attributes:
    segmenter: of the targets, in their order.
    targets: K.
    output: existing folder.
    read, options, check_sides: as in `predict`.
    origin: fields of every legend.
    explainer: makes the routing maps of the page, or None.
  """

  segmenter: Segmenter
  targets: Sequence[outputs.Target]
  output: pathlib.Path
  read: Callable[[pathlib.Path], volume.Volume]
  options: outputs.Options
  check_sides: bool
  origin: Mapping
  explainer: explain.Explainer | None = None

  def __call__(
    self,
    path: pathlib.Path,
    name: str,
    *,
    twins: Sequence[str] = (),
    on_progress: Callable[[float], object] = lambda share: None,
  ) -> Result:
    """Reads, segments and writes one scan; whatever goes wrong is in the result.

    Args:
      path: of the scan.
      name: NAME in the outputs' names.
      twins: the files that have this name, itself included.
      on_progress: called with the share of the scan that was finished last.
    """
    start = time.perf_counter()
    status, notes = 'ok', []
    try:
      if len(twins) > 1:
        raise PredictError(f'{" and ".join(twins)} would both be written as {name}_seg; rename one')
      with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        scan = self.read(path)
      notes = [str(warning.message) for warning in caught]
      with outputs.staged(self.output) as folder:
        maps = None
        if self.options.probabilities:
          maps = outputs.ProbabilityMaps(folder, scan, len(self.targets))

        def on_slab(planes, logits):
          if maps is not None:
            maps.add(planes, logits)
          on_progress(len(logits) / len(scan.array))

        found = self.segmenter(scan.array, scan.spacing, on_slab)
        if maps is not None:
          maps.write(folder / f'{name}_probabilities', self.targets)
        if self.check_sides and outputs.is_mirrored(found):
          status = 'mirrored'
          notes.append(f'{path}: liver lies left of spleen; the scan or its header is mirrored')
        routing = self.explainer and self.explainer(scan.array, scan.spacing)
        legend = {'input': str(path), **self.origin, 'warnings': notes}
        outputs.write_scan(
          folder,
          name,
          scan,
          found,
          self.targets,
          options=self.options,
          origin=legend,
          routing=routing,
        )
    except Exception as error:  # whatever is wrong with one scan must not cost the others
      status, notes = 'failed', [_reason(error, path)]
    return Result(name, str(path), status, round(time.perf_counter() - start, 2), '; '.join(notes))


def _reason(error: Exception, path: pathlib.Path) -> str:
  text = ' '.join(str(error).split())
  if isinstance(error, volume.VolumeError | PredictError):
    return text
  if isinstance(error, NonFiniteLogitsError):
    return f'{path}: {text}'
  if isinstance(error, OSError):
    return f'{error.filename or path}: {error.strerror or text}; check the output folder'
  return f'{path}: {type(error).__name__}: {text}'


def _make_output(output: pathlib.Path, scans: Sequence[str | os.PathLike]) -> None:
  if any(pathlib.Path(scan).resolve() == output.resolve() for scan in scans):
    raise PredictError(f'{output}: is the input too; masks there would be read as scans next time')
  try:
    output.mkdir(parents=True, exist_ok=True)
    with outputs.staged(output):
      pass
  except OSError as error:
    raise PredictError(
      f'{output}: cannot be written ({error.strerror}); change --output'
    ) from error


def _write_report(path: pathlib.Path, results: Sequence[Result]) -> None:
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)])
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, results))


# ---------------------------------------------------------------------------- command line
def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m mome_jax.predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--checkpoint', required=True, help='model folder, or --workdir of a training'
  )
  parser.add_argument('--input', required=True, nargs='+', help='NIfTI files, or folders of them')
  parser.add_argument('--output', required=True, help='folder for the results')
  parser.add_argument('--prompts', help='names or any text, separated by commas; default: all')
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
  return parser.parse_args(dashed(argv))


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is normal
  use_compilation_cache()
  try:
    results = predict(
      args.checkpoint,
      args.input,
      args.output,
      None if args.prompts is None else parse_prompts(args.prompts),
      read=functools.partial(
        volume.read_image, assume_spacing=args.assume_spacing, number=args.volume
      ),
      options=outputs.Options(args.masks, args.probabilities, not args.no_preview, args.report),
      check_sides=args.check_sides,
      text_model=args.text_model,
      rules=None if args.postprocess is None else postprocess.parse(args.postprocess),
    )
  except ValueError as error:  # all of ours are
    print(f'error: {error}', file=sys.stderr)
    return 1
  failed = [result for result in results if result.status == 'failed']
  print(f'{len(results) - len(failed)} of {len(results)} scans segmented; results in {args.output}')
  for result in failed:
    print(f'failed {result.case}: {result.message}', file=sys.stderr)
  if failed:
    return 1
  return 3 if any(result.status == 'mirrored' for result in results) else 0


if __name__ == '__main__':
  sys.exit(main())
