"""Text encoders in model folders, and configs that fit them."""

import ast
import dataclasses
import json
from typing import Any

import jax
import ml_collections
from etils import epath

from mome_jax import shipped
from mome_jax.checkpoint import hf_folder
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.checkpoint.files import SAFETENSORS, TOKENIZER, locate
from mome_jax.checkpoint.model_folder import load_config, load_model
from mome_jax.configs import base
from mome_jax.text.t5 import T5Config, build_text_encoder
from mome_jax.text.text_model import TextModel
from mome_jax.text.tokenizer import Tokenizer

_SIZES = [field for field in dataclasses.fields(T5Config) if field.name != 'dtype']


def text_sizes(text: Any) -> dict[str, Any]:
  """What a `config.text`, or a T5Config, says of the encoder's architecture, by its fields.

  Those that a config leaves to their defaults are left out.
  """
  values = text if isinstance(text, ml_collections.ConfigDict) else vars(text)
  return {
    field.name: values[field.name]
    for field in _SIZES
    if field.name in values
    and (field.name in base.get_config().text or values[field.name] != field.default)
  }


def fit_text(text: ml_collections.ConfigDict, sizes: dict[str, Any]) -> list[str]:
  """Takes over the architecture of an encoder, in place.

  Args:
    text: `config.text`; what is not as in `configs/base.py` is somebody's wish and stays.
    sizes: from `text_sizes`.

  Returns:
    'text.num_layers is 4, not 2', of each wish that the encoder does not fulfil.
  """
  default, wishes = base.get_config().text, []
  with text.unlocked():
    for name, size in sizes.items():
      if name in text and text[name] not in (size, default.get(name)):
        wishes.append(f'text.{name} is {text[name]}, not {size}')
      else:
        text[name] = size
  return wishes


def has_text_encoder(path: epath.PathLike) -> bool:
  """Whether a model has a text encoder of its own; CheckpointError if there is no model."""
  place = locate(path)
  if place.params is None or load_config(path).text.mode == 'frozen':
    return False
  # NOTE: Orbax's own way to ask starts JAX, which a run of several processes must not do so early.
  if place.params.name == SAFETENSORS:
    return any(name.startswith('text.') for name in hf_folder.names(place.params))
  file = place.params / '_METADATA'
  try:
    names = json.loads(file.read_text(encoding='utf-8'))['tree_metadata']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(f'{file}: cannot be read ({error!r}); copy the model again') from error
  return any(ast.literal_eval(name)[0] == 'text' for name in names)


def load_text_encoder(path: epath.PathLike = shipped.TEXT) -> TextModel:
  """The text encoder of a model, ready for texts; by default the one that comes with the package.

  Args:
    path: as of `load_model`.

  Raises:
    CheckpointError: if there is no model, it cannot be read, or its text is frozen.
  """
  if not has_text_encoder(path):
    raise CheckpointError(f'{path}: has no text encoder; its text is frozen')
  model = load_model(path, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
  text = model.config.text
  vocabulary = Tokenizer(model.folder / TOKENIZER)
  return TextModel(build_text_encoder(text), model.params['text'], vocabulary, text.max_length)
