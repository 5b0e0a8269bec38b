"""What the command lines share."""

import argparse
import contextlib
import contextvars
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from input_pipeline import errors
from input_pipeline.files import buckets

# The command that runs, as 'mome predict', and how all commands are called in place of modules.
_called: contextvars.ContextVar[tuple[str, Mapping[str, str]]] = contextvars.ContextVar(
  'called', default=('', {})
)


@contextlib.contextmanager
def called_as(command: str, names: Mapping[str, str]) -> Iterator[None]:
  """Help speaks of commands as a console command spells them.

  Args:
    command: the one that runs, as 'mome predict'.
    names: what stands for what: {'python -m mome_jax.predict': 'mome predict', ...}.
  """
  token = _called.set((command, names))
  try:
    yield
  finally:
    _called.reset(token)


def called() -> str:
  """The console command that runs, as 'mome predict'; '' of a module."""
  return _called.get()[0]


def spoken(text: str) -> str:
  """A text of help with its commands as the user calls them; longer ones are replaced first."""
  _, names = _called.get()
  for name in sorted(names, key=len, reverse=True):
    text = re.sub(rf'{re.escape(name)}(?![\w.])', names[name], text)
  return text


class _Store(argparse._StoreAction):
  """Keeps a value; of an option that takes several, and is given again, those of all times.

  An empty one, as of `--output=$UNSET`, would be the folder one is in.
  """

  def __call__(self, parser, namespace, values, option_string=None):
    empty = '' in (values if isinstance(values, list) else [values])
    if empty and '' not in (self.default, self.const):
      parser.error(f'{option_string or self.metavar or self.dest} is empty; give it a value')
    before = getattr(namespace, self.dest, None)
    if self.nargs in ('+', '*') and before is not self.default:
      values = [*(before or ()), *(values or ())]
    super().__call__(parser, namespace, values, option_string)


class Once(argparse._StoreAction):
  """Keeps a value; given again, an error: the option takes several in one text, by commas."""

  def __call__(self, parser, namespace, values, option_string=None):
    if getattr(namespace, self.dest, None) is not self.default:
      parser.error(f'{option_string} is given twice; give it once, with commas in between')
    super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
  """An ArgumentParser whose errors take one line and name the nearest option; exit code 2.

  The description, a docstring, keeps its lines. It and usage speak of commands as the user called
  this one; see `called_as`. Paths may begin with `~`; see `from_home`. An option of the type
  `pathlib.Path` takes no bucket, which would be a folder called `gs:` here.
  """

  def __init__(self, *, prog: str | None = None, description: str | None = None, **options):
    description = description and spoken(description)
    options.setdefault('formatter_class', argparse.RawDescriptionHelpFormatter)
    super().__init__(prog=called() or prog, description=description, **options)
    for name in (None, 'store'):
      self.register('action', name, _Store)
    self.register('type', pathlib.Path, _on_disk)

  def parse_args(self, args=None, namespace=None):
    words = from_home(sys.argv[1:] if args is None else args)
    # First: what argparse would miss, as it is required, may be there and called otherwise.
    if not {'-h', '--help'} & {*words}:
      self._refuse(self._unknown_options(words))
    parsed, unknown = self.parse_known_args(words, namespace)
    self._refuse(unknown)
    return parsed

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'error: {errors.one_line(message)} ({self.prog} --help lists the options)\n')

  def _refuse(self, unknown: Sequence[str]) -> None:
    if not unknown:
      return
    option = unknown[0].partition('=')[0]
    known = list(self._known())
    alike = [name for name in known if len(option) == 2 and name.startswith(f'-{option}')]
    hint = f'did you mean {" or ".join(alike)}?' if alike else errors.suggest(option, known)
    self.error(f'unknown argument {unknown[0]}' + (f'; {hint}' if option.startswith('-') else ''))

  def _unknown_options(self, words: Sequence[str]) -> list[str]:
    known, unknown = list(self._known()), []
    before = ''
    for word in itertools.takewhile(lambda word: word != '--', words):
      option = word.partition('=')[0]
      abbreviates = self.allow_abbrev and option.startswith('--')
      is_known = any(name == option or abbreviates and name.startswith(option) for name in known)
      # With a space in it, argparse takes it for the value of the option before.
      is_value = ' ' in option or (' ' in word and before.startswith('-'))
      if re.match('--?[a-zA-Z]', option) and not is_known and not is_value:
        unknown.append(word)
      before = word
    return unknown

  def _known(self) -> Iterator[str]:
    for action in self._actions:
      yield from action.option_strings
      if isinstance(action, argparse._SubParsersAction):
        for parser in action.choices.values():
          yield from parser._known()


def dashed(argv: Sequence[str] | None) -> list[str]:
  """The arguments (None: of this process) with options spelled with dashes; underscores pass."""
  words = []
  for word in sys.argv[1:] if argv is None else argv:
    option, equals, value = word.partition('=')
    words.append(option.replace('_', '-') + equals + value if word.startswith('--') else word)
  return words


def from_home(words: Sequence[str]) -> list[str]:
  """The words with the user's home for `~`, which no shell expands in `--output=~/x`."""
  home = os.path.expanduser('~')
  return [re.sub(r'(?:^|(?<=[=:]))~(?=[/\\]|$)', lambda _: home, word) for word in words]


def spacing(text: str) -> tuple[float, float, float]:
  """'X,Y,Z' or one number, in mm; ArgumentTypeError for anything else."""
  try:
    numbers = [float(part) for part in text.split(',')]
  except ValueError:
    numbers = []
  if len(numbers) not in (1, 3) or not all(0 < mm < 100 for mm in numbers):
    raise argparse.ArgumentTypeError(f'{text!r}: expected X,Y,Z or one number, in mm')
  x, y, z = numbers * 3 if len(numbers) == 1 else numbers
  return x, y, z


def names(text: str) -> list[str]:
  """The names between commas, without the spaces around them and without empty ones."""
  return [name for part in text.split(',') if (name := part.strip())]


def identifier(text: str) -> str:
  """The name of a prepared source; ArgumentTypeError for what cannot be one."""
  if not re.fullmatch('[a-z][a-z0-9_]*', text):
    raise argparse.ArgumentTypeError(f'{text!r}: expected small letters, digits and _')
  return text


def _on_disk(text: str) -> pathlib.Path:
  if not text:
    raise argparse.ArgumentTypeError('is empty; give it a value')
  if buckets.is_in_bucket(text):
    raise argparse.ArgumentTypeError(f'{text} {buckets.NO_DISK}')
  return pathlib.Path(text)


def at_least(low: int) -> Callable[[str], int]:
  """Reads a whole number from `low` on; ArgumentTypeError for anything else."""

  def read(text: str) -> int:
    if not text.isdecimal() or int(text) < low:
      raise argparse.ArgumentTypeError(f'{text!r}: expected a whole number from {low} on')
    return int(text)

  return read


def seconds(text: str) -> float:
  """A finite number above 0; ArgumentTypeError for anything else."""
  try:
    number = float(text)
  except ValueError:
    number = 0.0
  if not 0 < number < float('inf'):
    raise argparse.ArgumentTypeError(f'{text!r}: expected a number above 0')
  return number
