"""Reads the `config.json` of a model or run, of this version or an earlier one."""

import dataclasses
import json
from typing import Any

import ml_collections
from etils import epath

from input_pipeline.files import text_files
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.text.t5 import T5Config

# Options of earlier versions -> the value that says what every model does now. None of the others
# was ever better in a measurement.
_RETIRED: dict[tuple[str, ...], Any] = {
  ('model', 'fusion'): 'logits',
  ('model', 'backbone', 'space_to_depth'): False,
  ('model', 'bank', 'by_confidence'): False,
}
# Option of earlier versions -> its name now, and the new value of each old one.
_RENAMED: dict[tuple[str, ...], tuple[str, dict[Any, Any]]] = {
  ('model', 'warm_start'): ('anchor', {False: 'none', True: 'finest'}),
}
# Sections that say what a model computes: no field of theirs may go unread.
_CLOSED = ('data', 'model', 'model.bank', 'text')
_TEXT_FIELDS = [field.name for field in dataclasses.fields(T5Config)]  # published encoders set more


def read_config(file: epath.Path) -> dict[str, Any]:
  """The values in a `config.json`, nested, without options that are no more.

  Raises:
    CheckpointError: if it cannot be read, or asks for something that this version cannot do.
  """
  text = text_files.read_explained(file, CheckpointError)
  try:
    values = json.loads(text)
  except ValueError as error:
    raise CheckpointError(f'{file}: not a config of this program ({error})') from error
  for path, (name, translation) in _RENAMED.items():
    for part in _holding(values, path):
      value = part.pop(path[-1])
      if value not in list(translation):  # which need not be hashable
        allowed = ' or '.join(map(json.dumps, translation))
        raise CheckpointError(
          f'{file}: {".".join(path)} is {json.dumps(value)}; expected {allowed}: correct it'
        )
      part[name] = translation[value]
  for path, now in _RETIRED.items():
    for part in _holding(values, path):
      value = part.pop(path[-1])
      if value == now:
        continue
      option = '.'.join(path)
      raise CheckpointError(
        f'{file}: {option} is {value!r}, which version 0.1 was the last to offer; use that version '
        'with this model'
      )
  return values


def check_fields(file: epath.Path, values: Any, defaults: ml_collections.ConfigDict) -> None:
  """Refuses what would be left unread, though the parameters may have been trained with it.

  Args:
    file: that the values are from.
    values: of `read_config`.
    defaults: of `configs/base.py`; the fields of a backbone are its own.

  Raises:
    CheckpointError: for a section that holds no fields, or an unknown field of what a model is.
  """
  _check_section(file, '', values, defaults)


def _check_section(
  file: epath.Path, section: str, values: Any, defaults: ml_collections.ConfigDict
) -> None:
  if not isinstance(values, dict):
    raise CheckpointError(f'{file}: not a config of this program ({section or "it"} has no fields)')
  known = {*defaults, *_TEXT_FIELDS} if section == 'text' else {*defaults}
  for field, value in values.items():
    name = f'{section}.{field}' if section else field
    if section in _CLOSED and field not in known:
      raise CheckpointError(
        f'{file}: {name} is not known: written by a later version? update mome-jax'
      )
    if isinstance(defaults.get(field), ml_collections.ConfigDict):
      _check_section(file, name, value, defaults[field])


def _holding(values: Any, path: tuple[str, ...]) -> list[dict[str, Any]]:
  """The one dict that holds the last name of a path, or none."""
  for name in path[:-1]:
    values = values.get(name) if isinstance(values, dict) else None
  return [values] if isinstance(values, dict) and path[-1] in values else []
