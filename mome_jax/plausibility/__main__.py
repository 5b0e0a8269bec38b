r"""Writes down what the classes of a model look like in its training labels: class_statistics.json.

  python -m mome_jax.plausibility --checkpoint=MODEL --data_dir=data

Training does the same at its end; this is for models that were made before, or elsewhere. What the
run held out, by a fold of a cross-validation or by validation.cases, is left out here too. With the
record, prediction tells which masks cannot be what they are called, and which scans show another
part of the body. Volume, density, place in the body, surroundings and the places of classes from
each other are measured in the prepared training scans, in those labels only that supervise a class.
Sources that contradict each other on what a scan can show (one labels a liver, the other declares
it absent) are regions of the body with a record each; a scan is judged by the one that it is most
like.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from input_pipeline.cli import Parser, at_least, dashed, names
from input_pipeline.errors import UserError, command, writing

if TYPE_CHECKING:
  from mome_jax.plausibility import record


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.plausibility', description=__doc__, allow_abbrev=False)
  parser.add_argument(
    '--checkpoint', required=True, help='model folder or workdir, which gets the file'
  )
  parser.add_argument('--data-dir', required=True, help='folder of the prepared sources')
  parser.add_argument(
    '--sources',
    type=names,
    help="of them, separated by commas; default: those of the model's config",
  )
  parser.add_argument(
    '--most',
    type=at_least(1),
    metavar='N',
    help='training scans to measure, spread evenly over the sources (default: 300)',
  )
  return parser


def _told(region: 'record.Record', classes: Sequence[str]) -> Iterator[str]:
  yield (
    f'{", ".join(region.sources)}: {region.cases} training scans; tolerance {region.tolerance:g}'
  )
  for name, known in region.classes.items():
    size = known.values['volume_ml']
    masks, implausible = (region.left_out[key][name] for key in ('masks', 'implausible'))
    yield (
      f'  {name}: {known.cases} labels, {known.cut} of them cut; {size.low:.3g} to {size.high:.3g} '
      f'ml; left out, {implausible} of {masks} called implausible'
    )
  if region.few:
    yield f'  few labels, judged in foreign scans only: {", ".join(region.few)}'
  judged = {*region.classes, *region.few, *region.absent}
  missing = [name for name in classes if name not in judged]
  if missing:
    yield f'  too few labels, not judged: {", ".join(missing)}'
  if region.absent:
    yield f'  not to be seen there, implausible: {", ".join(region.absent)}'


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  from input_pipeline import bricks
  from input_pipeline.files import text_files
  from input_pipeline.patients import folds
  from mome_jax import checkpoint
  from mome_jax.checkpoint import training_cases
  from mome_jax.plausibility import learn, record

  model = checkpoint.own_folder(args.checkpoint)  # whose record is not others', too
  config = checkpoint.load_config(model)
  sources = tuple(config.data.sources if args.sources is None else args.sources)
  if not sources:
    raise UserError('--sources names none; leave it out, or name some')
  template = bricks.read_template(args.data_dir, sources, config.new_classes)
  data = config.data
  fold = folds.by_source(args.data_dir, sources, data.sources, data.fold, data.folds)
  stores = [bricks.open_bricks(args.data_dir, source, template, fold[source]) for source in sources]
  folder = checkpoint.folder_of(model)
  # Some were set aside to choose by, and are on no list of what it was trained on.
  if config.validation.cases and (trained := training_cases.read(folder)):
    known = {(source, case) for source, case, _ in trained.cases}
    stores = [store.part(known) if store.name in data.sources else store for store in stores]
  with writing(folder):  # before minutes of measuring
    text_files.check_replaceable(folder / record.FILE)
  made = learn.learn_stores(
    stores, config.classes, args.data_dir, most=args.most or learn.MOST_CASES
  )
  record.write(folder, made)
  print(
    f'{folder / record.FILE}: {len(made)} {"regions" if len(made) > 1 else "region"} of the body'
  )
  for one in made:
    print('\n'.join(_told(one, config.classes)))
  return 0


if __name__ == '__main__':
  sys.exit(main())
