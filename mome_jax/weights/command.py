"""Writes a published checkpoint as a model folder of this program.

  python -m mome_jax.weights --source=universal_unet --checkpoint=unet.pth --output=runs/cum

A CLIP-Driven Universal Model becomes ready for `python -m mome_jax.predict --checkpoint=DIR`. The
other sources fill a part of a model: train from the folder with --config.init.checkpoint=DIR.
"""

import argparse
import pathlib
from collections.abc import Sequence

from input_pipeline.cli import Parser, dashed
from input_pipeline.errors import command
from mome_jax import weights


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.weights', description=__doc__)
  parser.add_argument('--source', required=True, choices=weights.SOURCES, help='what published it')
  parser.add_argument(
    '--checkpoint', required=True, type=pathlib.Path,
    help='.safetensors, .pth, .pt or .bin file, an .index.json of shards, or the folder of a T5',
  )  # fmt: skip
  parser.add_argument('--output', required=True, type=pathlib.Path, help='folder to write')
  parser.add_argument(
    '--merging', choices=weights.MERGING_ORDERS,
    help='needed for the monai sources: the order of patch merging that the checkpoint was trained '
    'with. cum: by MONAI until January 2025 (its pull request 8285); monai: by MONAI since then; '
    "monai_v2: with downsample='mergingv2'. Weights of use_v2=True are not read",
  )  # fmt: skip
  parser.add_argument(
    '--text-vectors', type=pathlib.Path,
    help='PyTorch file of the (K, d) text vectors, for a universal checkpoint without them',
  )  # fmt: skip
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  parser = make_parser()
  options = parser.parse_args(dashed(argv))
  if options.merging and not options.source.startswith('monai'):
    parser.error(f'--merging is for the monai sources; {options.source} has one order')
  if options.source.startswith('monai') and not options.merging:
    parser.error(
      f'{options.source} needs --merging, which no tensor tells: cum of weights trained with MONAI '
      'until January 2025, monai of later ones'
    )
  if options.text_vectors and not options.source.startswith('universal'):
    parser.error(f'--text-vectors is for the universal sources, not for {options.source}')
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.weights import write_folder

  if options.source == 't5':
    write_folder.write_t5(options.checkpoint, options.output)
  else:
    write_folder.write_segmentation(options)
  return 0
