r"""Pictures of prepared sources, to see mistakes before training.

  python -m input_pipeline.inspect --data_dir=DIR [--source=NAME ...] [--output=DIR]

Writes `SOURCE.png` for each prepared source with training cases: augmented patches with the
contours of their labels, how many voxels and cases each class has, the spread of HU, and the scans'
sizes and spacings. And `SOURCE_augmentations.png`: one patch, and after each augmentation alone.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from input_pipeline import bricks, cli, errors
from input_pipeline.inspect.contact_sheet import augmentations, contact_sheet


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(prog='python -m input_pipeline.inspect', description=__doc__)
  parser.add_argument(
    '--data-dir', required=True, type=epath.Path, help='folder of all prepared sources'
  )
  parser.add_argument('--source', action='append', help='default: all with training cases')
  parser.add_argument('--output', type=epath.Path, help='default: DATA_DIR/inspect')
  parser.add_argument('--seed', type=cli.at_least(0), default=0, help='of the patches (0)')
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(cli.dashed(argv))
  names = args.source or bricks.training_sources(args.data_dir)
  code = 0
  for name in names:
    path = (args.output or args.data_dir / 'inspect') / f'{name}.png'
    try:
      store = bricks.open_bricks(args.data_dir, name)
      classes = contact_sheet(store, path, seed=args.seed)
      augmentations(store, path.with_name(f'{name}_augmentations.png'), seed=args.seed)
    except errors.UserError as error:  # costs only this source
      print(f'error: {errors.one_line(error)}', file=sys.stderr)
      code = 1
      continue
    empty = [label for label, (_, voxels) in classes.items() if not voxels]
    print(f'{path}: {len(classes)} classes' + (f'; without a voxel: {empty}' if empty else ''))
  return code
