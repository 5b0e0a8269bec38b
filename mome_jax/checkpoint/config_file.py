"""Reads the `config.json` of a model or run, of this version or an earlier one."""

import json
from typing import Any

from etils import epath

from mome_jax.checkpoint.errors import CheckpointError

# Options of earlier versions -> the value that says what every model does now. None of the others
# was ever better in a measurement.
_RETIRED = {
  ('model', 'fusion'): 'logits',
  ('model', 'backbone', 'space_to_depth'): False,
  ('model', 'bank', 'by_confidence'): False,
}


def read_config(file: epath.Path) -> dict[str, Any]:
  """The values in a `config.json`, nested, without options that are no more.

  Raises:
    CheckpointError: if it is damaged, or asks for something that this version cannot do.
  """
  try:
    values = json.loads(file.read_text())
  except ValueError as error:
    raise CheckpointError(f'{file}: not a config of this program ({error})') from error
  for (*parents, name), now in _RETIRED.items():
    part = values
    for parent in parents:
      part = part.get(parent) if isinstance(part, dict) else None
    if not isinstance(part, dict) or name not in part:
      continue
    value = part.pop(name)
    if value != now:
      option = '.'.join((*parents, name))
      raise CheckpointError(
        f'{file}: {option} is {value!r}, which version 0.1 was the last to offer; use that version '
        'with this model'
      )
  return values
