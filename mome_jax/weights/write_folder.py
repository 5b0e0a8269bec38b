"""Model folders of published checkpoints."""

import argparse
import hashlib
import pathlib
from collections.abc import Iterable

import jax

from mome_jax import checkpoint
from mome_jax.configs import base
from mome_jax.text import embed, prompts, tokenizer
from mome_jax.text.vectors import TextVectors
from mome_jax.weights import files, networks, t5
from mome_jax.weights.errors import WeightsError


def write_t5(path: pathlib.Path, output: pathlib.Path) -> None:
  """A model folder whose parameters are those of the text encoder alone.

  Args:
    path: checkpoint of a T5, or its folder.
    output: folder to write.

  Raises:
    WeightsError: if there is no T5.
  """
  file = files.find_checkpoint(path)
  encoder, variables = t5.load(file)
  config = base.get_config()
  with config.text.unlocked():
    config.text.update(encoder.__dict__)
  vocabulary = file.with_name('spiece.model')
  tokenizer.Tokenizer(vocabulary)  # fails here rather than at the first prompt
  checkpoint.save_model(output, config, {'text': variables['params']}, tokenizer=vocabulary)
  _report(output, file, variables)


def write_segmentation(options: argparse.Namespace) -> None:
  """A model folder of a segmentation network, or of a part of one.

  Args:
    options: of the command line: source, checkpoint, output, merging, text_vectors.

  Raises:
    WeightsError: if the checkpoint does not fit its source.
  """
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
      raise WeightsError(f'{file}: has no text vectors (organ_embedding); give --text-vectors=FILE')
    source = {
      'model': 'CLIP-Driven Universal Model',
      'vectors_sha256': hashlib.sha256(converted.text.tobytes()).hexdigest(),
    }
    names = prompts.default_prompts(classes)
    vectors = TextVectors(tuple(names), converted.text, source)
  if vectors.embeddings.shape != (len(classes), width):
    raise WeightsError(
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
