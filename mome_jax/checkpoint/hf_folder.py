"""Model folders as on the Hugging Face Hub: parameters in one safetensors file, a model card."""

import json
import re
from collections.abc import Mapping
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
from mome_jax.errors import few, reading, writing

CARD = 'README.md'
_LIBRARY = 'mome-jax'
_TAGS = ('medical', 'computed-tomography', 'image-segmentation', 'text-prompted',
         'mixture-of-experts', 'jax', 'flax')  # fmt: skip
_KEY = r'["\']?(\w[\w .-]*)["\']?[ \t]*:(?=\s)'  # of a field of a front matter


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
    before: text of the card that the model came with, '' where it had none; its body and what its
      front matter says are kept.
    parameters: their number.
  """
  old, body = _split(before)
  new = {
    'library_name': f'library_name: {_LIBRARY}',
    'pipeline_tag': 'pipeline_tag: image-segmentation',
    'tags': '\n'.join(['tags:', *(f'- {tag}' for tag in _TAGS)]),
  }
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
  return _front(new, _fields(old), licence) + (body or '\n'.join(facts))


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


def check_card(folder: epath.PathLike) -> None:
  """Refuses to make a card of a README.md that is of something else than a model.

  A text without front matter is meant for the card where it lies alone.

  Raises:
    CheckpointError: if it is the card of another library, or lies beside other files.
  """
  text, file = read_card(folder), absolute(folder) / CARD
  front = _fields(_split(text)[0])
  line = front.get('library_name', '').partition('\n')[0].partition(' #')[0]
  library = line.partition(':')[2].strip(' "\'')
  if library not in ('', _LIBRARY):
    raise CheckpointError(f'{file}: is the card of a model of {library}; choose another --output')
  if text and not front:
    names = (path.name for path in file.parent.iterdir())
    if beside := sorted(name for name in names if name[0] != '.' and name != CARD):
      raise CheckpointError(
        f'{file}: has no front matter of a model card, and lies beside {few(beside)}: of another '
        f'project? Choose another --output, or let it begin with lines of ---, library_name: '
        f'{_LIBRARY}, ---'
      )


def merged(text: str, before: str, licence: str = '') -> str:
  """A card with what the one that was there before says, its body and its front matter.

  Args:
    text: of the card.
    before: of the other, or ''.
    licence: as for `card`.
  """
  (old, body), (front, own) = _split(before), _split(text)
  return _front(_fields(front), _fields(old), licence) + (body or own)


def licence_of(text: str) -> str:
  """What the front matter of a card says of the licence, as lines; '' where it says nothing."""
  return '\n'.join(t for name, t in _fields(_split(text)[0]).items() if _of_licence(name))


def _of_licence(name: str) -> bool:
  return name.startswith('license')


def _front(new: Mapping[str, str], old: Mapping[str, str], licence: str) -> str:
  """A front matter with its dashes: of two the older, but for the library and a licence given."""
  bare = lambda fields: {name: text for name, text in fields.items() if not _of_licence(name)}
  if licence:
    old = {**bare(old), 'license': f'license: {licence}'}
  if any(map(_of_licence, old)):  # a licence has several fields, all of one card
    new = bare(new)
  fields = {**new, **old, 'library_name': new['library_name']}
  return '\n'.join(['---', *fields.values(), '---', '', ''])


def _split(text: str) -> tuple[str, str]:
  """The front matter that a card may begin with, without its dashes, and the rest."""
  parts = re.match(r'---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)', text, re.DOTALL | re.MULTILINE)
  return (parts[1], text[parts.end() :].lstrip('\n')) if parts else ('', text)


def _fields(front: str) -> dict[str, str]:
  """The fields of a front matter by name, each with all lines up to the next one."""
  fields = re.finditer(rf'^{_KEY}.*(?:\n(?!{_KEY}).*)*', front, re.MULTILINE)
  return {field[1]: field[0].rstrip() for field in fields}
