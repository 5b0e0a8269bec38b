"""Text files as people's programs write them: any line ends, with or without a byte order mark."""

import codecs
import csv
import errno
import io
import json
import os
from typing import Any

from etils import epath

from input_pipeline.errors import UserError, reading

# UTF-32 first: its mark begins like that of UTF-16.
_MARKS = (
  (codecs.BOM_UTF8, 'utf-8-sig'),
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)


class TextFileError(UserError):
  """A text file that cannot be read; the message names the file and the fix."""


def read_text(path: str | os.PathLike) -> str:
  r"""The text of a file: UTF-8, or UTF-16 or UTF-32 with its mark; every line ends with '\n'.

  Raises:
    OSError: if the file cannot be opened.
    TextFileError: if it is in another encoding.
  """
  content = epath.Path(path).read_bytes()
  encoding = next((name for mark, name in _MARKS if content.startswith(mark)), 'utf-8')
  try:
    text = content.decode(encoding)
  except UnicodeDecodeError as error:
    raise TextFileError(f'{path}: byte {error.start} is not {encoding}; save it as UTF-8') from None
  return text.replace('\r\n', '\n').replace('\r', '\n')


def read_explained(path: str | os.PathLike, error: type[UserError]) -> str:
  """The text of a file as of `read_text`; every failure is an `error` that names the file."""
  try:
    with reading(path, error):
      return read_text(path)
  except TextFileError as fault:
    raise error(str(fault)) from fault


def replace(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file in one step: whoever reads it, or a kill, finds the old or the new content.

  Text is written as UTF-8.

  Raises:
    OSError: if it cannot be written; the old content stays.
  """
  file = epath.Path(path)
  part = file.with_name(f'.{file.name}.part')
  try:
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(file)
  finally:
    part.unlink(missing_ok=True)


def check_replaceable(path: str | os.PathLike) -> None:
  """OSError where `replace` could not write a file; nothing is left of the trial."""
  file = epath.Path(path)
  if file.is_dir():
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  part = file.with_name(f'.{file.name}.part')
  part.write_bytes(b'')
  part.unlink()


def read_json(path: str | os.PathLike) -> Any:
  """What a JSON file holds; errors as `read_text`, and TextFileError if it is not JSON."""
  try:
    return json.loads(read_text(path))
  except json.JSONDecodeError as error:
    raise TextFileError(f'{path}: not JSON ({error}); correct it') from error


def are_texts(value: Any) -> bool:
  """Whether a value of a JSON file is a list of texts: one name without its brackets is none."""
  return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def read_csv(path: str | os.PathLike, separators: str = ',;\t') -> tuple[list[str], list[dict]]:
  """The column names and the rows of a CSV file; errors as `read_text`.

  Args:
    path: of the file.
    separators: the one that is most often in the first line separates columns.
  """
  text = read_text(path)
  first = text.partition('\n')[0]
  reader = csv.DictReader(io.StringIO(text), delimiter=max(separators, key=first.count))
  return list(reader.fieldnames or ()), list(reader)
