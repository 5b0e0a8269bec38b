"""Scores of a checkpoint, of folders of masks, and differences between evaluations.

  python -m mome_jax.evaluate score --predictions DIR --references DIR
  python -m mome_jax.evaluate compare A B [C ...]

score: the masks of two folders, as nnU-Net, TotalSegmentator and `mome_jax.predict` write them;
compare: paired differences B - A, case by case, of two workdirs or evaluation folders, or a table
of several, each against the first. A checkpoint is scored by
`python -m mome_jax.main --mode=evaluate`.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from etils import epath

from input_pipeline import bricks, errors, progress
from input_pipeline.anatomy import IGNORE_CODE
from input_pipeline.cli import Parser, dashed
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.evaluate import compare, froc, held_out, metrics, score_files, score_folders
from mome_jax.inference import router_maps
from mome_jax.inference.loaded_model import Predictor
from mome_jax.pictures import overlay
from mome_jax.pictures.colours import palette
from mome_jax.text import prompts
from mome_jax.training import multihost


def evaluate(config, workdir: epath.Path) -> dict:
  """Scores the newest checkpoint of `workdir` on the held-out scans of its sources.

  Writes `evaluation/` (see `score_files.write`; of test scans `evaluation_test/`) and
  `pictures/*.png` into `workdir` and prints the table. Scans that the model was trained on
  are left out, and said to be. Several hosts share the scans, and each segments its own on its
  own devices; the lead process draws its first ones, and computes and writes the scores of all.
  With `evaluation.prompts='held_out'` there are no pictures and the folder
  is `evaluation_held_out`.

  Args:
    config: see `configs/base.py`; usually the model's own (`checkpoint.load_config`).
    workdir: of a training run, or a model folder.

  Returns:
    The summary, of the first split where `evaluation.split` asks for all; see `metrics.summarize`.

  Raises:
    CheckpointError: if there is no checkpoint.
    HeldOutError: if `evaluation.split` names nothing, or no scan is left to score.
    PromptError: if `evaluation.prompts` names nothing, or a class has no held-out name.
  """
  if config.evaluation.prompts not in prompts.BY_KIND:
    hint = errors.suggest(config.evaluation.prompts, prompts.BY_KIND)
    raise prompts.PromptError(f'evaluation.prompts is {config.evaluation.prompts!r}; {hint}')
  folder = checkpoint.folder_of(workdir)
  trained = training_cases.read(folder)
  names = tuple(config.classes)
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  parts = held_out.find(
    config.data_dir,
    config.data.sources,
    template,
    split=config.evaluation.split,
    trained=trained,
  )
  predictor = Predictor(workdir, config)
  texts = prompts.BY_KIND[config.evaluation.prompts](names, template)
  if predictor.vectors is not None:
    predictor.vectors(
      texts,
      f'add them with python -m mome_jax.text.embed --output={folder}/text.npz --prompts TEXT ... '
      f'--new-classes={folder}/config.json --t5=FOLDER, the T5 checkpoint',
    )
  segmenter = predictor.segmenter(names, texts, template)
  explainer = router_maps.make_explainer(predictor, names, texts, segmenter)
  summaries = [
    _evaluate(workdir, part, predictor, segmenter, explainer, template, texts) for part in parts
  ]
  return summaries[0]


def _evaluate(workdir, part, predictor, segmenter, explainer, template, texts) -> dict:
  """The summary of one split."""
  config, names = predictor.config, tuple(predictor.config.classes)
  unseen = config.evaluation.prompts == 'held_out'
  routing = router_maps.Routing(explainer) if explainer and not unseen else None
  end = '' if part.split == 'validation' else f'_{part.split}'
  lead = multihost.is_lead()
  pictures = workdir / 'pictures'
  if lead:
    pictures.mkdir(exist_ok=True)
  rows, counts = [], []
  first, hosts = jax.process_index(), jax.process_count()
  total = len(range(first, len(part), hosts))
  bar = progress.bar(part.read(first, hosts), total=total, desc='evaluate', disable=not lead)
  for number, case in enumerate(bar):
    spacing = case.geometry.spacing
    levels = froc.Levels(names, case.image.shape)
    drawn = lead and number < config.evaluation.pictures and not unseen
    watch = explainer.watch() if explainer and drawn else None
    segmentation = segmenter(case.image, spacing, levels.add, watch=watch)
    rows += score_case(case, segmentation)
    counts += count_lesions(case, levels, template)
    if drawn:
      _draw(pictures / f'{case.name}.png', case, segmentation)
      if watch is not None:
        maps = watch.maps()
        routing.add(maps, case.image, spacing, segmentation)
        router_maps.draw_case(
          pictures / f'{case.name}_routing.png',
          maps,
          case.image,
          spacing,
          segmentation,
          title=f'{case.name}: which scale each class trusts where',
        )

  rows, counts = multihost.gather_rows(rows), multihost.gather_rows(counts)
  rows.sort(key=lambda row: (row['source'], row['case']))  # the same with any number of hosts
  if not lead:
    return metrics.summarize(rows)
  folder = workdir / f'evaluation{end}{"_held_out" if unseen else ""}'
  rules = ', '.join(segmenter.settings.rules) or 'none'
  step = '' if predictor.step is None else f', step {predictor.step}'
  title = f'{part.title()}{step}, post-processing: {rules}'
  if unseen:
    title += ', prompts not seen in training'
  origin = part.origin() | {
    'step': predictor.step,
    'postprocess': segmenter.settings.rules,
    'prompts': texts,
  }
  points = froc.summarize(counts)
  summary, table = score_files.write(folder, rows, title=title, origin=origin, points=points)
  if not unseen:
    froc.draw(pictures / f'detection{end}.png', points)
  if routing is not None and routing.cases:
    routing.draw(pictures / f'routing{end}.png')
  print(f'\n{table}\n\nTable and scores: {folder}\nPictures: {pictures}')
  return summary


def score_case(case, segmentation) -> list[dict]:
  """Scores of every class that the case labels, where it was contoured and nothing is ignored.

  Args:
    case: a `bricks.VolumeRecord`.
    segmentation: of its image.

  Returns:
    One row per (case, class), as `score_files.score` gives it.
  """
  spacing = case.geometry.spacing
  rows = []
  for name, truth in _truths(case, segmentation.names, segmentation.template):
    mask = _contoured(case, name, segmentation.mask(name))
    row = score_files.score(case.source, case.name, name, mask, truth, spacing)
    rows.append(row | {'split': case.split})
  return rows


def count_lesions(case, levels: froc.Levels, template) -> list[dict]:
  """Counts of every lesion class that the case labels, at every threshold; see `froc.count`.

  Args:
    case: a `bricks.VolumeRecord`.
    levels: of its image.
    template: of the class names.
  """
  rows = []
  for name, truth in _truths(case, levels.names, template):
    found = _contoured(case, name, levels.of(name))
    rows += froc.count(found, truth, case.geometry.spacing, name)
  return rows


def _truths(case, names: Sequence[str], template) -> Iterator[tuple[str, np.ndarray]]:
  """Name and mask, inside the heights where it was contoured, of each class the case labels."""
  for name in names:
    if name in case.supervised:
      yield name, _contoured(case, name, template.code_table([name])[case.codes, 0])


def _contoured(case, name: str, array: np.ndarray) -> np.ndarray:
  heights = case.slice_ranges.get(name, (-np.inf, np.inf))
  array = array * (case.codes != IGNORE_CODE)
  return metrics.restrict(array, case.geometry.spacing, heights)


def _draw(path: epath.Path, case, segmentation) -> None:
  shown = [name for name in segmentation.names if name in case.supervised]
  table = segmentation.template.code_table(shown)
  overlay.overlay(
    path,
    case.image,
    {name: segmentation.mask(name) for name in shown},
    case.geometry.spacing,
    truths={name: table[case.codes, i] for i, name in enumerate(shown)},
    title=f'{case.name}: prediction filled, reference dashed',
    colours=palette(segmentation.names),
  )


# ---------------------------------------------------------------------------- command line
def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(
    prog='python -m mome_jax.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  scoring = commands.add_parser(
    'score',
    help='predicted masks against references',
    description=score_folders.score_folders.__doc__.split('\n\n  Args:')[0],
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  scoring.add_argument('--predictions', required=True, metavar='DIR')
  scoring.add_argument('--references', required=True, metavar='DIR')
  scoring.add_argument('--classes', default='', help='names separated by commas; default: all')
  scoring.add_argument(
    '--dataset', default='', help='as in `input_pipeline.prepare --list`, for published numbers'
  )
  scoring.add_argument('--output', metavar='DIR', help='default: evaluation/ in --predictions')
  comparing = commands.add_parser(
    'compare',
    help='paired differences between evaluations',
    description=compare.compare.__doc__.split('\n\n  Args:')[0],
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  comparing.add_argument('a', metavar='A', help='workdir, evaluation folder or cases.csv')
  comparing.add_argument('others', metavar='B', nargs='+', help='several: one line each')
  comparing.add_argument('--output', metavar='DIR', help='also write comparison.md and .csv there')
  return parser


def _score(args: argparse.Namespace) -> int:
  classes = [name.strip() for name in args.classes.split(',') if name.strip()]
  folder = epath.Path(args.output or epath.Path(args.predictions) / 'evaluation')
  made = args.output and not folder.exists()
  if args.output:
    with errors.writing(folder):  # before the work, not after it
      folder.mkdir(parents=True, exist_ok=True)
  scores = score_folders.score_folders(
    args.predictions, args.references, classes=classes, dataset=args.dataset
  )
  rows, failed = scores.rows, scores.failed
  for note in scores.notes:
    print(f'note: {note}', file=sys.stderr)
  for case, reason in failed:
    print(f'not scored: {case}: {reason}', file=sys.stderr)
  if not rows:
    if made:
      folder.rmdir()
    print(f'error: {args.predictions}: nothing could be scored', file=sys.stderr)
    return 1
  cases = {row['case'] for row in rows}
  number = f'{len(cases)} of {len({*cases, *dict(failed)})}' if failed else str(len(cases))
  title = f'{number} scans, {args.predictions} against {args.references}'
  origin = {'predictions': args.predictions, 'references': args.references}
  _, table = score_files.write(folder, rows, title=title, origin=origin, failed=failed)
  print(f'{table}\nTable and scores: {folder}')
  return 1 if failed else 0


def _compare(args: argparse.Namespace) -> int:
  runs = {name: score_files.read(name) for name in (args.a, *args.others)}
  found = [compare.compare(runs[args.a], runs[name], names=(args.a, name)) for name in args.others]
  if len(found) == 1:
    text = compare.to_markdown(found[0])
  else:
    parent = os.path.commonprefix(list(runs)).rpartition('/')[0]  # of URLs too
    text = compare.overview({name.removeprefix(f'{parent}/'): runs[name] for name in runs})
  print(text)
  if args.output:
    folder = epath.Path(args.output)
    with errors.writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      (folder / 'comparison.md').write_text(text)
      (folder / 'comparison.csv').write_text(compare.to_csv(found))
    print(f'Written: {folder}')
  return 0


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  return {'score': _score, 'compare': _compare}[args.command](args)
