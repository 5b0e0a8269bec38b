r"""From a folder of your own labelled scans to a model, in one command.

  python -m mome_jax.finetune --data=FOLDER
  python -m mome_jax.finetune --data=FOLDER --from=runs/demo --workdir=runs/mine --steps=1000

FOLDER is laid out as for nnU-Net: imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz, dataset.json
with "labels". It is checked, prepared at the spacing of the model to start from, and trained on;
the scans that are held out are segmented with the start and with the new model, and the two are
compared where both know a class. WORKDIR/model is the result, WORKDIR/comparison.md the comparison.

The new model knows the classes that FOLDER labels; what else the start knew would be forgotten, and
is left out. Where the mean Dice of the classes that both know fell, that is said, and where there
is no further class WORKDIR/model is the start itself.

The same command again resumes where it stopped. Exit code 0 if all was done; 75 after SIGTERM and
130 after Control-C, which save first; 2 where the command line cannot be read, 1 after any other
error. It is 1, too, with the model written, where scans could not be read and were left out, or an
error prevented the comparison.
"""

import argparse
import os
from collections.abc import Sequence

# TensorFlow reads these when it is first imported; it announces itself otherwise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from input_pipeline import errors, stopping
from input_pipeline.cli import Parser, at_least, dashed


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.finetune', description=__doc__, allow_abbrev=False)
  parser.add_argument('--data', required=True, metavar='FOLDER', help='your scans and labels')
  parser.add_argument(
    '--from',
    dest='start',
    default='shipped',
    metavar='MODEL',
    help='model folder, workdir or hf:ORG/NAME to start from; shipped (default): that of the '
    'package',
  )
  parser.add_argument(
    '--workdir', metavar='DIR', help='of the run, its data and its model (runs/FOLDER)'
  )
  parser.add_argument('--steps', type=at_least(1), help='of training (planned from the scans)')
  return parser


@errors.command
@stopping.resumable
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.finetune import run

  return run.run(args.data, args.start, args.workdir, args.steps)
