"""A text file that grows by what is added, at a cost that does not depend on how long it is."""

import errno
import os
import pathlib

from mome_jax.predict import staging

_MARK = '\ufeff'  # byte order mark, which spreadsheets need to read text beyond ASCII as UTF-8


class GrowingFile:
  """A UTF-8 text whose end is kept behind whatever is added, as a bracket is that closes a list.

  An addition is one write, over the old end: a reader, or whoever is left after a kill, finds a
  whole file. A disk that is full leaves what was there.

  Args:
    path: of the file.
    marked: whether text beyond ASCII begins with a byte order mark.
  """

  def __init__(self, path: pathlib.Path, *, marked: bool = False):
    self.path = path
    self._marked = marked
    self._ascii = True
    self._end = b''
    self._size = 0
    self._left: tuple[int, ...] = ()  # what tells the file as it was left from any other

  def write(self, text: str, end: str = '') -> None:
    """Writes the whole text and its end, in place of the file that may be there."""
    self._ascii = (text + end).isascii()
    mark = _MARK if self._marked and not self._ascii else ''
    data = (mark + text + end).encode()
    with staging.scratch(self.path.parent) as folder:
      (folder / self.path.name).write_bytes(data)
      os.replace(folder / self.path.name, self.path)
    self._leave(end, len(data))

  def can_add(self, text: str) -> bool:
    """Whether `add` would do: nobody else has written the file, and it needs no mark at first."""
    marked = not self._marked or not self._ascii or text.isascii()
    try:
      return marked and _state(self.path) == self._left
    except FileNotFoundError:
      return False

  def add(self, text: str, end: str = '') -> None:
    """Writes more text where the end was, and an end that is as long at least."""
    data, place = (text + end).encode(), self._size - len(self._end)
    file = os.open(self.path, os.O_RDWR)
    try:
      written = _write(file, data, place)
      if written < len(data):
        _write(file, self._end, place)
        os.ftruncate(file, self._size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
    finally:
      os.close(file)
    self._leave(end, place + len(data))

  def _leave(self, end: str, size: int) -> None:
    self._end, self._size, self._left = end.encode(), size, _state(self.path)


def _state(path: pathlib.Path) -> tuple[int, ...]:
  state = path.stat()
  return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _write(file: int, data: bytes, place: int) -> int:
  try:
    return os.pwrite(file, data, place)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      return 0
    raise
