"""The one base of every mistake that a user can mend, and how the commands explain it."""

import contextlib
import difflib
import functools
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from input_pipeline import stopping

_FEW = 6  # known names that a message lists beside the nearest


class UserError(ValueError):
  """What was asked for cannot be done; one line that names the file or value, and the fix.

  Commands print it without a traceback and end with its `exit_code`. Any other exception is a fault
  of this program and keeps its traceback.
  """

  exit_code = 1


# What an extra brings, by the module that is missing without it.
_EXTRAS = {
  **dict.fromkeys(
    ('array_record', 'clu', 'grain', 'optax', 'tensorboard', 'tensorflow', 'tensorflow_datasets'),
    'train',
  ),
  'SimpleITK': 'itk',
  'apache_beam': 'beam',
  'gcsfs': 'gcs',
  'huggingface_hub': 'hub',
  'pynetdicom': 'node',
  'starlette': 'serve',
  'torch': 'weights',
  'transformers': 'sentence',
  'uvicorn': 'serve',
}


def install(module: str) -> str:
  """The command that brings a module of `_EXTRAS`."""
  return f"pip install 'mome-jax[{_EXTRAS[module]}]'"


def lacking(error: ModuleNotFoundError) -> str:
  """Which extra of the package would bring a module, and how; '' where none does."""
  package = (error.name or '').partition('.')[0]
  if package not in _EXTRAS:
    return ''
  return f'needs {error.name}, which is not installed: {install(package)}'


def unsupported() -> str:
  """Why nothing runs on this system; '' where it does.

  Windows has no SIGHUP, and no locks of files that end with their process.
  """
  if sys.platform == 'win32':
    return 'Windows is not supported; run it in WSL 2: docs/install.md'
  return ''


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
  """Makes main(argv=None) -> exit code explain a UserError: one line of the standard error.

  So it is with a module that an extra of the package would bring.
  Every other exception passes, traceback and all. Control-C and SIGTERM unwind the command, so that
  it cleans up, and end it with 130 and 143, as shells have it; so does whoever reads its output and
  wants no more of it, as in `mome info | head`, with 141. What the encoding of a terminal lacks,
  such as a dash, is printed escaped.
  """

  @functools.wraps(main)
  def explaining(argv: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == 'strict':
      sys.stdout.reconfigure(errors='backslashreplace')
    try:
      try:
        return _explained(main, argv)
      finally:
        print(end='', flush=True)  # at the interpreter's end nobody could catch what it raises
    except BrokenPipeError:
      unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
      if not unread:  # it was another pipe
        raise
      for stream in unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
      return 128 + signal.SIGPIPE

  return explaining


def _explained(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
  if unsupported():
    print(f'error: {unsupported()}', file=sys.stderr)
    return 1
  try:
    with stopping.stoppable():
      return main(argv)
  except UserError as error:
    print(f'error: {one_line(error)}', file=sys.stderr, flush=True)
    return error.exit_code
  except ModuleNotFoundError as error:
    if not lacking(error):
      raise
    print(f'error: {lacking(error)}', file=sys.stderr, flush=True)
    return 1
  except KeyboardInterrupt as stopped:
    number = stopping.number_of(stopped)
    how = 'interrupted' if number == signal.SIGINT else f'stopped by {number.name}'
    print(f'error: {how}', file=sys.stderr, flush=True)
    return 128 + number


def _is_unread(stream: TextIO | None) -> bool:
  """Whether a stream is a pipe of which nobody reads any more."""
  poll = select.poll()
  try:
    poll.register(stream.fileno(), 0)  # type: ignore[union-attr]
  except (AttributeError, OSError, ValueError):  # closed, or none of the system's
    return False
  return bool(poll.poll(0))


def one_line(error: BaseException | str) -> str:
  """A message without line breaks, and `printable`."""
  return printable(' '.join(str(error).split()))


def printable(text: str) -> str:
  """Text without what UTF-8 cannot hold: the bytes of a file's name in another encoding."""
  return re.sub('[\ud800-\udfff]', '\N{REPLACEMENT CHARACTER}', text)


def reason(error: BaseException) -> str:
  """Why one of many things failed: the message, after the type of what no user can mend."""
  text = one_line(error)
  return text if isinstance(error, UserError) else f'{type(error).__name__}: {text}'


def suggest(name: str, known: Iterable[str]) -> str:
  """What to write instead of an unknown name: 'did you mean spleen?', or 'known: liver, ...'.

  Few known names are listed in any case, many only where none is like the unknown one.
  """
  known = [str(one) for one in known]
  close = difflib.get_close_matches(str(name).casefold(), known, n=2, cutoff=0.7)
  hint = f'did you mean {" or ".join(close)}?' if close else ''
  if hint and len(known) > _FEW:
    return hint
  return f'{hint} known: {", ".join(known) or "none"}'.strip()


def few(names: Iterable[object], most: int = 3) -> str:
  """The first of some names, and how many more there are: 'a, b, c and 4 more'."""
  words = [str(name) for name in names]
  more = f' and {len(words) - most} more' if len(words) > most else ''
  return ', '.join(words[:most]) + more


@contextlib.contextmanager
def writing(path: str | os.PathLike, error: type[UserError] = UserError) -> Iterator[None]:
  """Turns what the disk refuses while `path` is written into an `error` that names it."""
  try:
    yield
  except OSError as refusal:
    if isinstance(refusal, (FileExistsError, NotADirectoryError)) and os.path.isfile(path):
      raise error(f'{path}: is a file, no folder; choose another place') from refusal
    raise error(
      f'{path}: cannot be written ({_refusal(refusal, path)}); free space, or choose another place'
    ) from refusal


@contextlib.contextmanager
def reading(path: str | os.PathLike, error: type[UserError] = UserError) -> Iterator[None]:
  """Turns what the disk refuses while the file `path` is read, or text that is none, into `error`.

  JSON that is none is meant too.
  """
  try:
    yield
  except UserError:
    raise
  except OSError as refusal:
    raise error(f'{path}: cannot be read ({_refusal(refusal, path)})') from refusal
  except ValueError as fault:  # UnicodeDecodeError and JSONDecodeError among them
    raise error(f'{path}: cannot be read ({one_line(fault)}); correct the file') from fault


@contextlib.contextmanager
def reading_into_memory(path: str | os.PathLike, error: type[UserError]) -> Iterator[None]:
  """Turns a lack of memory while `path` is read into an `error` that names it."""
  try:
    yield
  except MemoryError as lack:
    reason = one_line(lack) or type(lack).__name__
    raise error(
      f'{path}: not enough memory to read it ({reason}); end other programs or use a machine with '
      'more, or if it is not that large, copy it again'
    ) from lack


def _refusal(error: OSError, path: str | os.PathLike) -> str:
  text = error.strerror or one_line(error)
  other = error.filename is not None and os.fspath(error.filename) != os.fspath(path)
  return f'{error.filename}: {text}' if other else text
