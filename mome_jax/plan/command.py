r"""Plans an experiment for your data and your device.

  python -m mome_jax.plan --sources=nifti_folder --manual_dir=FOLDER --name=mine \
      --data_dir=runs/data --memory=24GiB --output=mine.py
  python -m mome_jax.plan --sources=openkbp --manual_dir=FOLDER --data_dir=runs/data --hours=0.5 \
      --output=planned.py
  python -m mome_jax.plan --sources=msd_liver=DIR,kits=DIR --data_dir=data --topology=v5e:4 \
      --output=planned.py

Reads the training scans (spacings, sizes, HU, volumes of the classes), chooses spacing, HU windows,
patch, batch, sampling and steps by stated rules, asks the compiler how many bytes a training step
takes until the largest one that fits is known, and writes a config with the reason of each value;
then prints the commands that prepare the data and train. Held-out scans decide nothing.

Without --topology the plan is for this machine; where it has no accelerator and --memory is given
without --hours, for an accelerator of that memory elsewhere.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from input_pipeline import errors
from input_pipeline.cli import Parser, at_least, dashed, identifier, seconds, spacing

_SIZES = ('small', 'base')
_UNITS = {'k': 10, 'm': 20, 'g': 30, 't': 40}


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.plan', description=__doc__, allow_abbrev=False)
  parser.add_argument(
    '--sources', required=True, metavar='NAME[=FOLDER],...',
    help='as prepare knows them, each with the folder of its download; or prepared in --data-dir',
  )  # fmt: skip
  parser.add_argument('--manual-dir', help='folder of the download of a source that names none')
  parser.add_argument(
    '--name', type=identifier, help='under which one source is, or will be, prepared'
  )
  parser.add_argument('--data-dir', required=True, help='folder of all prepared sources')
  parser.add_argument(
    '--output',
    type=pathlib.Path,
    help='the config to write: NAME.py; without it the plan is only printed',
  )
  parser.add_argument('--force', action='store_true', help='replace --output if it is there')
  group = parser.add_argument_group('what to plan for')
  group.add_argument('--memory', type=_bytes, help='of a device: 24GiB (all that is there)')
  group.add_argument('--topology', help='TPUs that are not here: v5e:4, v5e:4x4, v5p:8; or here')
  group.add_argument('--hours', type=seconds, help='of training on this machine (8 on a CPU)')
  group.add_argument('--size', choices=_SIZES, help='of the network (small on a CPU)')
  group.add_argument('--spacing', type=spacing, help='mm: X,Y,Z or one number, not the rule')
  group.add_argument(
    '--scans', type=at_least(1), default=100, help='at most to read of each source (100)'
  )
  group.add_argument(
    '--again', action='store_true', help='compile anew what was asked before on this machine'
  )
  return parser


def _bytes(text: str) -> int:
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?', text.strip(), re.IGNORECASE)
  if not match:
    raise argparse.ArgumentTypeError(f'{text!r}: expected a number with its unit, as 24GiB')
  number, unit, binary = match.groups()
  base = 1024 if binary else 1000
  return int(float(number) * base ** (_UNITS[unit.lower()] // 10))


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.plan import planning

  return planning.run(args)
