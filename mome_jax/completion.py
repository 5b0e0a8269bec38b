"""Tab completion of the command `mome`: prints a script for the shell.

python -m mome_jax.completion bash > ~/.local/share/bash-completion/completions/mome
python -m mome_jax.completion zsh > ~/.zsh/functions/_mome
python -m mome_jax.completion fish > ~/.config/fish/completions/mome.fish

zsh looks where $fpath says. The script holds the options of this version and starts no Python.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import shtab

from input_pipeline import sources
from input_pipeline.cli import Parser, called_as, dashed
from input_pipeline.errors import command
from mome_jax import cli
from mome_jax.training import config_flag

SHELLS = ('bash', 'zsh', 'fish')
# Of those that are not declared as paths.
_PATHS = {'checkpoint', 'data_dir', 'groups', 'input', 'manual_dir', 'new_classes', 'output',
          'predictions', 'prompts_file', 'references', 't5', 'cum', 'text_model', 'workdir',
          'a', 'others'}  # fmt: skip


def script(shell: str) -> str:
  """The completion script for one of SHELLS."""
  return shtab.complete(_whole(), shell)


def _whole() -> argparse.ArgumentParser:
  """One parser of all commands."""
  whole = argparse.ArgumentParser('mome')
  whole.add_argument('--version', action='store_true', help='print the version')
  parts = whole.add_subparsers()
  for name, entry in cli.COMMANDS.items():
    with called_as(f'mome {name}', cli.spelled()):
      parser = _part(entry.load().make_parser(), entry.first)
    for action in parser._actions:
      _add_values(action)
    parts.add_parser(name, help=entry.help, parents=[parser], add_help=False)
  return whole


def _part(parser: argparse.ArgumentParser, first: Sequence[str]) -> argparse.ArgumentParser:
  """The parser that reads what comes after the arguments `first`."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      return action.choices[first[0]]
  return parser


def _add_values(action: argparse.Action) -> None:
  """Names the values of an option where there is a list of them, or says that it takes a path."""
  known = {'source': sorted(sources.SOURCES), 'config': config_flag.names()}
  if action.dest in known and action.choices is None:
    action.choices = known[action.dest]
  elif action.dest in _PATHS or action.type is pathlib.Path:
    action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.completion', description=__doc__, allow_abbrev=False)
  parser.add_argument('shell', choices=SHELLS)
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  print(script(make_parser().parse_args(dashed(argv)).shell))
  return 0


if __name__ == '__main__':
  sys.exit(main())
