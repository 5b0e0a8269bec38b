"""Writes a published checkpoint as a model folder of this program.

  python -m mome_jax.weights --source=universal_unet --checkpoint=unet.pth --output=runs/cum

A CLIP-Driven Universal Model becomes ready for `python -m mome_jax.predict --checkpoint=DIR`. The
other sources fill a part of a model: train from the folder with --config.init.checkpoint=DIR.
"""

import argparse
import hashlib
import pathlib
import sys
from collections.abc import Iterable, Sequence

import jax

from input_pipeline.cli import Parser, dashed
from input_pipeline.errors import command
from mome_jax import checkpoint, weights
from mome_jax.configs import base
from mome_jax.models.backbones import swin
from mome_jax.text import embed, prompts, tokenizer
from mome_jax.text.vectors import TextVectors
from mome_jax.weights import files, networks, t5


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(
    prog='python -m mome_jax.weights',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--source', required=True, choices=weights.SOURCES)
  parser.add_argument(
    '--checkpoint', required=True, type=pathlib.Path,
    help='.safetensors, .pth, .pt or .bin file, an .index.json of shards, or the folder of a T5',
  )  # fmt: skip
  parser.add_argument('--output', required=True, type=pathlib.Path, help='folder to write')
  parser.add_argument(
    '--merging', choices=swin.MERGING_ORDERS,
    help='order of patch merging the MONAI checkpoint was trained with (default monai)',
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
  if options.text_vectors and not options.source.startswith('universal'):
    parser.error(f'--text-vectors is for the universal sources, not for {options.source}')
  if options.source == 't5':
    _write_t5(options.checkpoint, options.output)
  else:
    _write_segmentation(options)
  return 0


def _write_t5(path: pathlib.Path, output: pathlib.Path) -> None:
  """A model folder whose parameters are those of the text encoder alone."""
  file = files.find_checkpoint(path)
  encoder, variables = t5.load(file)
  config = base.get_config()
  with config.text.unlocked():
    config.text.update(encoder.__dict__)
  vocabulary = file.with_name('spiece.model')
  tokenizer.Tokenizer(vocabulary)  # fails here rather than at the first prompt
  checkpoint.save_model(output, config, {'text': variables['params']}, tokenizer=vocabulary)
  _report(output, file, variables)


def _write_segmentation(options: argparse.Namespace) -> None:
  state = files.read_tensors(options.checkpoint)
  merging = {'merging': options.merging} if options.merging else {}
  converted = networks.SOURCES[options.source](state, **merging)
  vectors = None
  if options.source.startswith('universal'):
    vectors = _vectors(options, converted)
  checkpoint.save_model(
    options.output, converted.config, {'model': converted.variables['params']}, vectors=vectors
  )
  _report(options.output, options.checkpoint, converted.variables)
  if converted.fresh:
    print(f'not in the checkpoint, random in training: {", ".join(_parts(converted.fresh))}')


def _vectors(options: argparse.Namespace, converted: networks.Converted) -> TextVectors:
  """The text vectors of the classes, from a file of their own or the checkpoint."""
  classes, width = converted.config.classes, converted.config.text.d_model
  if options.text_vectors:
    file, vectors = options.text_vectors, embed.read_cum(options.text_vectors)
  else:
    file = options.checkpoint
    if converted.text is None:
      raise weights.WeightsError(
        f'{file}: has no text vectors (organ_embedding); give --text-vectors=FILE'
      )
    source = {
      'model': 'CLIP-Driven Universal Model',
      'vectors_sha256': hashlib.sha256(converted.text.tobytes()).hexdigest(),
    }
    names = prompts.default_prompts(classes)
    vectors = TextVectors(tuple(names), converted.text, source)
  if vectors.embeddings.shape != (len(classes), width):
    raise weights.WeightsError(
      f'{file}: text vectors are {vectors.embeddings.shape}, '
      f'the network has {(len(classes), width)}'
    )
  return vectors


def _report(output: pathlib.Path, file: pathlib.Path, variables: dict) -> None:
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  print(f'{output}: {count:,} parameters of {file}')


def _parts(paths: Iterable[str]) -> list[str]:
  """The two outer levels of the paths, each once."""
  return sorted({'/'.join(path.split('/')[:2]) for path in paths})


if __name__ == '__main__':
  sys.exit(main())
