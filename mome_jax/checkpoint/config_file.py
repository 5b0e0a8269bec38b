"""Reads the `config.json` of a model or run, of this version or an earlier one."""

import json
from typing import Any

from etils import epath

from mome_jax.checkpoint.errors import CheckpointError

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


def read_config(file: epath.Path) -> dict[str, Any]:
  """The values in a `config.json`, nested, without options that are no more.

  Raises:
    CheckpointError: if it is damaged, or asks for something that this version cannot do.
  """
  try:
    values = json.loads(file.read_text())
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


def _holding(values: Any, path: tuple[str, ...]) -> list[dict[str, Any]]:
  """The one dict that holds the last name of a path, or none."""
  for name in path[:-1]:
    values = values.get(name) if isinstance(values, dict) else None
  return [values] if isinstance(values, dict) and path[-1] in values else []
