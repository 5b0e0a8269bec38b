"""Where a text encoder begins: as the one of the package, of a model, a published T5, or random."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from etils import epath

from input_pipeline.files.buckets import NO_DISK, is_in_bucket
from mome_jax import checkpoint, shipped
from mome_jax.errors import ConfigError
from mome_jax.text import prompt_inputs
from mome_jax.text.tokenizer import DEFAULT_MODEL
from mome_jax.weights import t5

_SHIPPED = 'shipped'


@dataclasses.dataclass(frozen=True)
class TextStart:
  """Where the text encoder of a new run begins.

  Attributes:
    name: as users call it; '' where it begins with random parameters.
    sizes: of the encoder, as of `checkpoint.text_sizes`; {} are those of the config.
    tokenizer: SentencePiece file of its vocabulary.
    load: () -> its parameters; None for random ones.
  """

  name: str
  sizes: dict[str, Any]
  tokenizer: epath.Path
  load: Callable[[], Any] | None


def find(config: ml_collections.ConfigDict) -> TextStart:
  """The start that `config.init` names for a text encoder.

  A folder in `init.text` comes first, then the model of `init.checkpoint` if it has a text encoder,
  then the encoder of the package; an empty `init.text` is a random start in any case.

  Raises:
    ConfigError: if the folder of `init.text` holds neither, or is a published one in a bucket.
    CheckpointError, WeightsError: if it is damaged.
  """
  origin, text = config.init.checkpoint, config.init.text
  if not text:
    return TextStart('', {}, epath.Path(DEFAULT_MODEL), None)
  if text != _SHIPPED:
    if is_in_bucket(text) and _is_published(text):
      raise ConfigError(f'{text} {NO_DISK}')
    return _of_published(text) if _is_published(text) else _of_model(text, text)
  if origin and checkpoint.has_text_encoder(origin):
    return _of_model(origin, origin)
  return _of_model(shipped.TEXT, 'the package')


def fit(config: ml_collections.ConfigDict, start: TextStart) -> None:
  """Gives `config.text` the sizes of the encoder that a new run starts from, in place.

  Raises:
    ConfigError: if the config asks for others.
  """
  wishes = checkpoint.fit_text(config.text, start.sizes)
  if wishes:
    raise ConfigError(
      f'{", ".join(wishes)}: of the text encoder of {start.name}, which the run starts from; leave '
      'that out, or train a random text encoder: --config.init.text= --config.train.text_rate=1'
    )


def complete(config: ml_collections.ConfigDict) -> None:
  """The same for a new run of `config`, whose text may be frozen; errors as of both."""
  if not prompt_inputs.is_frozen(config.text):
    fit(config, find(config))


def _is_published(path: str) -> bool:
  """Whether a folder is one as Hugging Face publishes them."""
  return (epath.Path(path) / 'spiece.model').is_file()


def _of_published(path: str) -> TextStart:
  folder = pathlib.Path(path)
  sizes = checkpoint.text_sizes(t5.read_config(folder / 'config.json'))
  load = lambda: t5.load(folder)[1]['params']
  return TextStart(path, sizes, epath.Path(folder / 'spiece.model'), load)


def _of_model(path: epath.PathLike, name: str) -> TextStart:
  if not checkpoint.has_text_encoder(path):
    raise ConfigError(f'{path}: that model has no text encoder; its text is frozen')
  config = checkpoint.load_config(path)

  def load():
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return checkpoint.load_model(path, device).params['text']

  tokenizer = checkpoint.text_file(path, config)
  return TextStart(name, checkpoint.text_sizes(config.text), tokenizer, load)
