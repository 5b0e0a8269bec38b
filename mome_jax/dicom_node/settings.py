"""The config file of a DICOM node."""

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from input_pipeline.files import text_files
from input_pipeline.files.buckets import NO_DISK, is_in_bucket
from mome_jax import shipped
from mome_jax.errors import UserError, suggest
from mome_jax.predict import formats

_AE_TITLE = re.compile(r' *[!-\[\]-~][ -\[\]-~]{0,15} *')
_RESULTS = [name for name, kind in formats.FORMATS.items() if kind.needs_series]


class SettingsError(UserError):
  """A config file that cannot be used; the message names the field and what was expected."""


@dataclasses.dataclass(frozen=True)
class Destination:
  """Where results go.

  Attributes:
    ae_title: of the archive.
    host: its name or address.
    port: its port.
  """

  ae_title: str
  host: str
  port: int


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a node does.

  Attributes:
    destinations: each gets every result.
    ae_title: that senders call.
    host: address that is listened on; 0.0.0.0 is all of the machine.
    port: that is listened on; 0 is any that is free.
    callers: AE titles that may send; empty is everybody.
    checkpoint: model, as of `mome predict`; '' is the shipped one.
    prompts: names or any text, separated by commas; '' is all but the experimental classes.
    results: of formats.FORMATS, those for DICOM: dicom_seg, rtstruct, ...
    folder: for series and results until they are done with; what is left there when the node
      stops is gone on with.
    wait: seconds without a further image after which a series is whole.
    attempts: to send a result, `wait` seconds and more apart.
    keep: keep series and results that are done with.
  """

  destinations: tuple[Destination, ...]
  ae_title: str = 'MOME'
  host: str = '127.0.0.1'
  port: int = 11112
  callers: tuple[str, ...] = ()
  checkpoint: str = ''
  prompts: str = ''
  results: tuple[str, ...] = ('dicom_seg',)
  folder: str = 'dicom_node'
  wait: float = 10.0
  attempts: int = 10
  keep: bool = False

  @property
  def model(self) -> str:
    """The path of the model."""
    return self.checkpoint or str(shipped.MODEL)


_KINDS: dict[Any, tuple[str, Any]] = {
  str: ('a text', str),
  int: ('a whole number', int),
  float: ('a number', (int, float)),
  bool: ('true or false', bool),
  tuple[str, ...]: ('a list of texts', list),
}


def read(path: pathlib.Path) -> Settings:
  """Reads a config file, TOML.

  Raises:
    SettingsError: if it cannot be read, or a field is unknown or wrong.
  """
  try:
    values = tomllib.loads(text_files.read_text(path))
  except OSError as error:
    raise SettingsError(f'{path}: cannot be read ({error.strerror})') from error
  except tomllib.TOMLDecodeError as error:
    raise SettingsError(f'{path}: no TOML ({error}); correct it') from error
  listed = values.pop('destinations', None)
  if not isinstance(listed, list) or not listed:
    raise SettingsError(
      f'{path}: no destination; add [[destinations]] with ae_title, host and port'
    )
  destinations = tuple(
    Destination(**_checked(one, Destination, f'{path}: destinations', whole=True)) for one in listed
  )
  fields = _checked(values, Settings, str(path))
  settings = Settings(destinations, **fields)
  for name in settings.results:
    if name not in _RESULTS:
      raise SettingsError(f'{path}: results: {name!r} is none; {suggest(name, _RESULTS)}')
  if not settings.results:
    raise SettingsError(f'{path}: results is empty; choose of {", ".join(_RESULTS)}')
  if is_in_bucket(settings.folder):
    raise SettingsError(f'{path}: folder: {settings.folder} {NO_DISK}')
  if settings.wait < 0 or settings.attempts < 1:
    raise SettingsError(f'{path}: wait must be 0 or more, attempts 1 or more')
  return settings


def _checked(values: Any, kind: type, place: str, *, whole: bool = False) -> dict[str, Any]:
  """The fields of a table, in the types that they have in `kind`."""
  if not isinstance(values, Mapping):
    raise SettingsError(f'{place}: expected a table, got {values!r}')
  fields = {f.name: f.type for f in dataclasses.fields(kind) if f.name != 'destinations'}
  made = {}
  for name, value in values.items():
    if name not in fields:
      raise SettingsError(f'{place}: no field is called {name!r}; {suggest(name, fields)}')
    noun, types = _KINDS[fields[name]]
    good = isinstance(value, types) and isinstance(value, bool) == (types is bool)
    if good and types is list:
      good = all(isinstance(item, str) for item in value)
    if not good:
      raise SettingsError(f'{place}: {name} is {value!r}; expected {noun}')
    made[name] = tuple(value) if types is list else value
    titles = made[name] if name == 'callers' else [value] if name == 'ae_title' else []
    if not all(map(_AE_TITLE.fullmatch, titles)):
      raise SettingsError(
        f'{place}: {name} is {value!r}; an AE title has 1 to 16 ASCII letters, and no backslash'
      )
    if name == 'host' and not _is_host(value):
      raise SettingsError(f'{place}: host is {value!r}; expected a name or an address')
    if name == 'port' and not (0 if not whole else 1) <= value < 1 << 16:
      raise SettingsError(f'{place}: port is {value}; expected a number up to 65535')
  if whole and (lacking := [name for name in fields if name not in made]):
    raise SettingsError(f'{place}: {", ".join(lacking)} is missing')
  return made


def _is_host(text: str) -> bool:
  """Whether a name can be looked up: no part of it is empty, or longer than 63 letters."""
  try:
    return bool(text.encode('idna'))
  except UnicodeError:
    return False
