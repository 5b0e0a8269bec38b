r"""Makes the text vectors of frozen text: prompts through a published text encoder, once.

  python -m mome_jax.text.embed --model FOLDER --output text.npz

FOLDER is one as Hugging Face publishes it: a T5 (v1.0, v1.1 or Flan, any size) with config.json,
model.safetensors or pytorch_model.bin, spiece.model; or a sentence encoder (BERT, MiniLM, MPNet and
the like; pip install 'mome-jax[sentence]'). Every prompt that training can draw is embedded;
held-out synonyms are not. A file that was made from the same weights, vocabulary and prompts is
left as it is. `--cum FILE` takes the 32 x 512 vectors of the CLIP-Driven Universal Model instead,
one a class.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from input_pipeline import errors
from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.cli import Parser, dashed
from input_pipeline.files import text_files
from mome_jax.text import prompts as prompts_lib
from mome_jax.text.vectors import TextVectorError, TextVectors


def extend(
  vectors: TextVectors, prompts: Sequence[str], folder: str | os.PathLike[str]
) -> TextVectors:
  """The vectors with those of further prompts, from the encoder that made them.

  Raises:
    TextVectorError: if the folder holds another checkpoint than theirs.
  """
  missing = tuple(prompt for prompt in dict.fromkeys(prompts) if prompt not in vectors)
  if not missing:
    return vectors
  from mome_jax.text import embedders

  model = embedders.open_model(folder)
  noted = [part for part in embedders.NOT_IN_WEIGHTS if part in vectors.source]
  for part in ('weights_sha256', 'tokenizer_sha256', *noted):
    if model.source.get(part) != vectors.source.get(part):
      raise TextVectorError(
        f"{folder}: not the checkpoint that made this model's text vectors "
        f'({vectors.source.get("model", "unknown")}; {part} differs); pass that one as --text-model'
      )
  added = model(missing).embeddings
  return TextVectors(
    vectors.prompts + missing, np.concatenate([vectors.embeddings, added]), vectors.source
  )


class Extending:
  """Vectors to which those of further prompts are added when they are asked for, each once.

  Args:
    vectors: to begin with.
    folder: of the encoder that made them.
  """

  def __init__(self, vectors: TextVectors, folder: str | os.PathLike[str]):
    self._vectors, self._folder = vectors, folder

  def __call__(self, prompts: Sequence[str]) -> np.ndarray:
    """(K, d_t) float32; raises as `extend`."""
    self._vectors = extend(self._vectors, prompts, self._folder)
    return self._vectors(prompts)


def read_cum(path: str | os.PathLike[str], template: Template = TEMPLATE) -> TextVectors:
  """The vectors of the CLIP-Driven Universal Model: row n is class n + 1 of the template.

  Args:
    path: PyTorch file of a (32, 512) tensor (31 rows in older ones).
    template: anatomy.Template.

  Raises:
    WeightsError: if the file cannot be read.
    TextVectorError: if it holds something else.
  """
  from mome_jax.text import embedders
  from mome_jax.weights import torch_file

  path = pathlib.Path(path)
  rows = torch_file.load(path)
  if not (isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.shape[0] in (31, 32)):
    raise TextVectorError(f"{path}: no tensor of 32 text vectors; give CUM's txt_encoding.pth")
  names = template.names()[: len(rows)]
  source = {'model': 'CLIP-Driven Universal Model', 'file_sha256': embedders.digest([path])}
  return TextVectors(
    tuple(prompts_lib.default_prompts(names, template)), rows.astype(np.float32), source
  )


def _read_template(path: str | None) -> Template:
  """The built-in classes and those that a JSON file declares."""
  if path is None:
    return TEMPLATE
  try:
    return TEMPLATE.extend(text_files.read_json(path)['new_classes'])
  except OSError as error:
    raise TextVectorError(f'{path}: cannot be read ({error.strerror})') from error
  except (ValueError, KeyError, TypeError) as error:
    raise TextVectorError(f'{path}: no list of new_classes ({error})') from error


def _is_current(output: pathlib.Path, key: str) -> bool:
  try:
    return TextVectors.load(output).key == key
  except TextVectorError:
    return False


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.text.embed', description=__doc__)
  given = parser.add_mutually_exclusive_group(required=True)
  given.add_argument(
    '--model', '--t5', metavar='FOLDER', help='of a T5 checkpoint or a sentence encoder'
  )
  given.add_argument('--cum', help='txt_encoding.pth of the CLIP-Driven Universal Model')
  parser.add_argument('--output', type=pathlib.Path, required=True, help='file.npz')
  parser.add_argument('--prompts', nargs='+', default=[], help='further texts to embed')
  parser.add_argument(
    '--new-classes', metavar='JSON', help='with new_classes: a dataset.json or a config.json'
  )
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  parser = make_parser()
  args = parser.parse_args(dashed(argv))
  if args.output.suffix != '.npz':
    parser.error(f'--output={args.output}: training would not read it; name it FILE.npz')
  if args.cum and (args.prompts or args.new_classes):
    parser.error(
      '--prompts and --new-classes go with --model: the vectors of --cum are those of its 32 '
      'classes, and nothing can embed further texts'
    )
  from mome_jax.text import embedders

  if args.cum:
    vectors = read_cum(args.cum)
  else:
    model = embedders.open_model(args.model)
    template = _read_template(args.new_classes)
    default = prompts_lib.default_prompts(template.names(), template)
    training = prompts_lib.training_prompts(template)
    texts = tuple(dict.fromkeys([*training, *default, *args.prompts]))
    if _is_current(args.output, TextVectors.key_of(texts, model.source)):
      print(f'{args.output}: made from the same before')
      return 0
    vectors = model(texts)
  with errors.writing(args.output):
    args.output.parent.mkdir(parents=True, exist_ok=True)
    vectors.save(args.output)
  print(f'{args.output}: {vectors.embeddings.shape[0]} prompts, width {vectors.width}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
