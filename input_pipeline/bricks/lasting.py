"""Prepared files that are read long after they were opened: damaged, or meanwhile others."""

import contextlib
import zlib
from collections.abc import Iterator

from etils import epath

from input_pipeline.errors import UserError, one_line


class NotPreparedError(UserError):
  """No complete prepared source where it was looked for; the message tells how to make it."""


@contextlib.contextmanager
def readable(path: epath.Path) -> Iterator[None]:
  """Turns what readers of prepared files raise, each its own, into an error that names the file."""
  try:
    yield
  except (UserError, MemoryError):
    raise
  except Exception as error:
    raise NotPreparedError(
      f'{path}: damaged, or cannot be read ({one_line(error)[:200]}); bring it back from a copy, '
      'or prepare the source again with --overwrite'
    ) from error


class LastingFile:
  """The file that tells what the records beside it hold.

  Records are opened when they are first asked for, by their path. `prepare` puts others there, of
  other cases, while a run reads: this file differs then from what was read of it first.

  Args:
    path: of the file.
  """

  def __init__(self, path: epath.Path):
    self.path = path
    self._checksum: int | None = None

  def read(self) -> bytes:
    """Its content; NotPreparedError if that is not what was read first."""
    with readable(self.path):
      content = self.path.read_bytes()
    checksum = zlib.crc32(content)
    if self._checksum is None:
      self._checksum = checksum
    if checksum != self._checksum:
      raise self._replaced()
    return content

  @contextlib.contextmanager
  def reading_records(self, folder: epath.Path) -> Iterator[None]:
    """As `readable` of the records' folder, but tells where another preparation is the reason."""
    try:
      with readable(folder):
        yield
    except NotPreparedError as error:
      if not self.path.exists():
        raise self._replaced() from error
      self.read()
      raise

  def _replaced(self) -> NotPreparedError:
    return NotPreparedError(
      f'{self.path}: prepared again since this run began; give the same command again'
    )
