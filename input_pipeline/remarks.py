"""What is odd about a file and costs nothing: told where it is read, collected by who asked.

A note is a warning, unless the thread that reads collects notes. Python's `catch_warnings` changes
what warnings do in all threads: of two that overlap, one loses what the other caught, and the last
to end may leave warnings switched off.
"""

import contextlib
import contextvars
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator

_lines: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar('notes', default=None)


def tell(message: str, *, stacklevel: int = 2) -> None:
  """Adds a line to what this thread collects, or warns of it where nobody collects.

  Args:
    message: begins with the file that it is about.
    stacklevel: of `warnings.warn`, seen from the caller.
  """
  lines = _lines.get()
  if lines is None:
    warnings.warn(message, stacklevel=stacklevel + 1)
  elif message not in lines:
    lines.append(message)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
  """The notes of a block in this thread, each once, in order; the list grows while it runs."""
  lines: list[str] = []
  token = _lines.set(lines)
  try:
    yield lines
  finally:
    _lines.reset(token)


def show(notes: Iterable[str]) -> None:
  """Prints notes to stderr, a line each."""
  for note in notes:
    print(f'note: {note}', file=sys.stderr)


class Hush:
  """`with hush:` ignores what a package warns of, in all threads until the last block has ended.

  Blocks may overlap: the first one changes what warnings do, and the last one puts it back.

  Args:
    package: of the code that warns.
  """

  def __init__(self, package: str):
    self._module = rf'{package}(\.|$)'
    self._lock = threading.Lock()
    self._blocks = 0

  def __enter__(self) -> None:
    with self._lock:
      if not self._blocks:
        self._before = warnings.catch_warnings()
        self._before.__enter__()
        warnings.filterwarnings('ignore', module=self._module)
      self._blocks += 1

  def __exit__(self, *error: object) -> None:
    with self._lock:
      self._blocks -= 1
      if not self._blocks:
        self._before.__exit__(*error)  # type: ignore[arg-type]  # as `with` passes it
