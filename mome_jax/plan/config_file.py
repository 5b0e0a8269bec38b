"""Writes a planned experiment as a Python file that a person reads and changes."""

import os
import pathlib
import tempfile
import textwrap
from collections.abc import Sequence
from typing import Any

from mome_jax.errors import UserError, writing
from mome_jax.plan.rules import Choice

_WIDTH = 100


class OutputError(UserError):
  """The file is there already; the message says how to replace it."""


def text(head: str, commands: Sequence[str], start: str, choices: Sequence[Choice]) -> str:
  """The program text of an experiment.

  Args:
    head: its first line, without a full stop.
    commands: that prepare the data and train.
    start: the config of `mome_jax.configs` that it changes.
    choices: the values, in order.
  """
  lines = [f'r"""{head}.', '', *commands, '"""', '']
  lines += ['import ml_collections', '', f'from mome_jax.configs import {start}', '', '']
  lines += ['def get_config() -> ml_collections.ConfigDict:', '  """Returns the experiment."""']
  lines.append(f'  config = {start}.get_config()')
  for choice in choices:
    if choice.why:
      lines += textwrap.wrap(
        f'# {choice.why}', _WIDTH, initial_indent='  ', subsequent_indent='  # ',
        break_on_hyphens=False,
      )  # fmt: skip
    lines += _assign(f'  config.{choice.name} = ', choice.value)
  return '\n'.join([*lines, '  return config', ''])


def _assign(left: str, value: Any) -> list[str]:
  line = f'{left}{value!r}'
  if len(line) <= _WIDTH or not isinstance(value, tuple):
    return [line]
  rows, row = [], ''
  for item in value:
    word = f'{item!r},'
    if row and len(row) + len(word) + 5 > _WIDTH:
      rows.append(f'    {row}')
      row = ''
    row = f'{row} {word}'.strip()
  return [f'{left}(', *rows, f'    {row}', '  )  # fmt: skip']


def check_free(path: pathlib.Path, *, force: bool) -> None:
  """Refuses a file that is there, before the work and not after it.

  Raises:
    OutputError: if it is there and `force` is not given, or its name is none of a program.
  """
  if path.suffix != '.py' or not path.stem.isidentifier():
    raise OutputError(f'--output={path}: expected a name like plan.py, letters, digits and _')
  if path.exists() and not force:
    raise OutputError(f'{path}: is there already; pass --force to replace it, or another --output')


def write(path: pathlib.Path, content: str, *, force: bool) -> None:
  """Writes the file in one step or not at all.

  Raises:
    OutputError: as `check_free`, or if it cannot be written.
  """
  check_free(path, force=force)
  with writing(path, OutputError):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}')
    try:
      with os.fdopen(handle, 'w', encoding='utf-8') as stream:
        stream.write(content)
      os.chmod(name, 0o644)
      os.replace(name, path)
    except BaseException:
      pathlib.Path(name).unlink(missing_ok=True)
      raise
