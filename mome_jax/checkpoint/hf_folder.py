"""Model folders as on the Hugging Face Hub: parameters in one safetensors file, a model card."""

import json
import re
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from input_pipeline.files import text_files
from mome_jax.checkpoint.errors import CheckpointError, brief
from mome_jax.checkpoint.files import SAFETENSORS, absolute
from mome_jax.errors import reading, writing

CARD = 'README.md'
_TAGS = ('medical', 'computed-tomography', 'image-segmentation', 'text-prompted',
         'mixture-of-experts', 'jax', 'flax')  # fmt: skip


_TYPES = {'F32': np.float32, 'BF16': jnp.bfloat16, 'F16': np.float16}


def save_params(folder: epath.PathLike, params: Any) -> None:
  """Writes `model.safetensors`; a parameter is called 'model.backbone.…', by its place.

  Args:
    folder: existing.
    params: nested dict of arrays.

  Raises:
    CheckpointError: if it cannot be written.
  """
  import safetensors.numpy

  flat = flax.traverse_util.flatten_dict(params)
  tensors = {'.'.join(path): np.asarray(leaf, order='C') for path, leaf in flat.items()}
  place = absolute(folder)
  with writing(place, CheckpointError):
    data = safetensors.numpy.save(tensors, {'format': 'flax'})
    text_files.replace(place / SAFETENSORS, data)


def names(file: epath.Path) -> list[str]:
  """What the parameters of `model.safetensors` are called; CheckpointError if it cannot be read."""
  try:
    with file.open('rb') as stream:
      header = json.loads(stream.read(int.from_bytes(stream.read(8), 'little')))
    return [name for name in header if name != '__metadata__']
  except (OSError, ValueError, OverflowError, MemoryError) as error:
    raise CheckpointError(
      f'{file}: cannot be read ({brief(error)}); copy the model again'
    ) from error


def load_params(file: epath.Path, sharding: jax.sharding.Sharding) -> Any:
  """Reads what `save_params` wrote; bfloat16 becomes float32.

  Args:
    file: `model.safetensors`.
    sharding: of every parameter.

  Raises:
    CheckpointError: if it cannot be read.
  """
  import safetensors

  placed = {}
  try:
    for name, stored in safetensors.deserialize(file.read_bytes()):
      array = np.frombuffer(stored['data'], _TYPES[stored['dtype']]).reshape(stored['shape'])
      wide = array.astype(np.promote_types(array.dtype, np.float32))
      placed[tuple(name.split('.'))] = jax.device_put(wide, sharding)
  except Exception as error:  # of the library or the disk
    raise CheckpointError(f'{file}: cannot be read ({brief(error)}); get it again') from error
  return flax.traverse_util.unflatten_dict(placed)


def card(
  config: ml_collections.ConfigDict,
  *,
  name: str,
  licence: str = '',
  before: str = '',
  parameters: int,
) -> str:
  """The text of a model card: front matter that the Hub reads, what the model is, how to use it.

  Args:
    config: of the model.
    name: of the model.
    licence: identifier such as apache-2.0; '' where nobody said: as the card of before says.
    before: text of the card that the model came with, '' where it had none; its body is kept.
    parameters: their number.
  """
  old_front, body = _split(before)
  front = ['---', 'library_name: mome-jax', 'pipeline_tag: image-segmentation']
  front += [f'license: {licence}'] if licence else _licence_lines(old_front)
  front += ['tags:', *(f'- {tag}' for tag in _TAGS), '---', '']
  spacing = ' x '.join(f'{mm:g}' for mm in config.data.spacing)
  facts = [
    f'# {name}',
    '',
    'Text-prompted segmentation of CT with MoME-JAX.',
    '',
    '| | |',
    '|:--|:--|',
    f'| classes | {", ".join(config.classes)} |',
    f'| network | {config.model.backbone.name}, {parameters:,} parameters |',
    f'| input | CT in HU, resampled to {spacing} mm |',
    '',
    '```bash',
    'mome predict --checkpoint hf:ORG/NAME --input scan.nii.gz --output out',
    '```',
    '',
    '**Not a medical device.**',
    '',
  ]
  return '\n'.join([*front, *([body] if body else facts)])


def write_card(folder: epath.PathLike, text: str) -> None:
  """Writes the model card of a folder."""
  place = absolute(folder)
  with writing(place, CheckpointError):
    (place / CARD).write_text(text, encoding='utf-8')


def read_card(folder: epath.PathLike) -> str:
  """The text of a folder's model card, '' where it has none; CheckpointError if unreadable."""
  file = absolute(folder) / CARD
  if not file.is_file():
    return ''
  with reading(file, CheckpointError):
    return text_files.read_text(file)


def with_body(text: str, before: str) -> str:
  """A card with the body of the one that was there before, if that had one."""
  _, body = _split(before)
  front, own = _split(text)
  return f'---\n{front}---\n\n{body or own}'


def licence_of(text: str) -> str:
  """What the front matter of a card says of the licence, as lines; '' where it says nothing."""
  return '\n'.join(_licence_lines(_split(text)[0]))


def _split(text: str) -> tuple[str, str]:
  """The front matter that a card may begin with, without its dashes, and the rest."""
  parts = re.match(r'---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)', text, re.DOTALL | re.MULTILINE)
  return (parts[1], text[parts.end() :].lstrip('\n')) if parts else ('', text)


def _licence_lines(front: str) -> list[str]:
  """The fields `license`, `license_name` and `license_link`, each with its indented lines."""
  return re.findall(r'^license\w*:.*(?:\n[ \t-].*)*', front, re.MULTILINE)
