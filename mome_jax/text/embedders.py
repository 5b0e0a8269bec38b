"""Published text encoders, opened to make vectors: T5, and sentence encoders."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from input_pipeline import progress
from mome_jax.errors import reading
from mome_jax.text import sentence_model
from mome_jax.text.t5 import TextEncoder
from mome_jax.text.text_model import TextModel
from mome_jax.text.tokenizer import Tokenizer
from mome_jax.text.vectors import TextVectorError, TextVectors
from mome_jax.weights import files, t5

_BATCH = 32
# What config.json and modules.json change in a checkpoint whose weights stay the same.
NOT_IN_WEIGHTS = (
  'feed_forward',
  'relative_attention_num_buckets',
  'relative_attention_max_distance',
  'pooling',
  'normalize',
)
_MAX_LENGTH = 64  # tokens; longer prompts are cut, with a warning


@dataclasses.dataclass(frozen=True)
class Embedder:
  """A text encoder that makes vectors: P prompts -> TextVectors.

  Attributes:
    source: what the vectors are made from; see `TextVectors.source`.
    embed: K texts -> (K, d_t) float32.
  """

  source: Mapping[str, str | int]
  embed: Callable[[Sequence[str]], np.ndarray]

  def __call__(self, prompts: Sequence[str]) -> TextVectors:
    """Embeds some prompts."""
    starts = range(0, len(prompts), _BATCH)
    bar = progress.bar(starts, desc='embed', disable=len(starts) <= 1)
    rows = [self.embed(prompts[start : start + _BATCH]) for start in bar]
    return TextVectors(tuple(prompts), np.concatenate(rows), self.source)


def open_model(folder: str | os.PathLike[str]) -> Embedder:
  """The text encoder in a folder, whose weights are read when it is first used.

  Args:
    folder: of a T5 or a sentence encoder as Hugging Face publishes them.

  Raises:
    TextVectorError: if a file is missing or damaged, or the encoder is of an unknown kind.
  """
  folder = pathlib.Path(folder)
  if sentence_model.model_type(folder) in ('', 't5', 'mt5'):
    if sentence_model.read_modules(folder) != ('mean', False):
      raise TextVectorError(
        f'{folder / "modules.json"}: asks for more than the mean over tokens, which is all that is '
        'made of a T5; take an encoder of another kind'
      )
    return _open_t5(folder)
  return _open_sentence_model(folder)


def _open_t5(folder: pathlib.Path) -> Embedder:
  vocabulary = folder / 'spiece.model'
  if folder.is_dir() and not vocabulary.is_file():
    raise TextVectorError(f"{vocabulary}: missing; put the T5 checkpoint's spiece.model there")
  try:
    weights = files.find_checkpoint(folder)
    tokenizer = Tokenizer(vocabulary)
    config = t5.read_config(folder / 'config.json')
  except (OSError, ValueError) as error:
    raise TextVectorError(str(error)) from error

  @functools.cache
  def model():
    try:
      config, variables = t5.load(folder)
    except (OSError, ValueError) as error:
      raise TextVectorError(f'{folder}: {error}') from error
    return TextModel(TextEncoder(config), variables['params'], tokenizer, _MAX_LENGTH)

  said = {name: getattr(config, name) for name in NOT_IN_WEIGHTS if hasattr(config, name)}
  source = _identity(folder, weights, [vocabulary]) | said | {'pooling': 'mean'}
  return Embedder(source, lambda texts: model()(texts))


def _open_sentence_model(folder: pathlib.Path) -> Embedder:
  model = sentence_model.SentenceModel(folder, _MAX_LENGTH)
  try:
    weights = files.find_checkpoint(folder)
  except ValueError as error:
    raise TextVectorError(str(error)) from error
  source = _identity(folder, weights, [folder / 'config.json', *model.tokenizer_files])
  return Embedder(source | {'pooling': model.pooling, 'normalize': int(model.normalize)}, model)


def _identity(
  folder: pathlib.Path, weights: pathlib.Path, tokenizer: Iterable[pathlib.Path]
) -> dict[str, str | int]:
  """What tells an encoder from others."""
  return {
    'model': folder.resolve().name,
    'weights_sha256': digest(files.shards(weights)),
    'tokenizer_sha256': digest(tokenizer),
    'max_length': _MAX_LENGTH,
  }


def digest(paths: Iterable[pathlib.Path]) -> str:
  """Sha-256 of the files one after the other; of files that stay as they are it is made once."""
  states = []
  for path in paths:
    with reading(path, TextVectorError):
      state = path.stat()
    states.append((path, state.st_size, state.st_mtime_ns))
  return _digest(tuple(states))


@functools.cache
def _digest(states: tuple[tuple[pathlib.Path, int, int], ...]) -> str:
  """`digest` of files by path, size and time: a server asks again for each new prompt."""
  total = hashlib.sha256()
  for path, *_ in states:
    with reading(path, TextVectorError), path.open('rb') as file:
      while block := file.read(1 << 24):
        total.update(block)
  return total.hexdigest()
