"""Tab completion of the command `mome`: prints a script for the shell.

python -m mome_jax.completion bash > ~/.local/share/bash-completion/completions/mome
python -m mome_jax.completion zsh > ~/.zsh/functions/_mome
python -m mome_jax.completion fish > ~/.config/fish/completions/mome.fish

These folders may have to be made first (mkdir -p). bash looks into its one where bash-completion is
installed; without, source <(python -m mome_jax.completion bash) serves. zsh looks where $fpath
says. The script holds the options of this version and starts no Python.
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
from mome_jax.training import command_line, config_flag

SHELLS = ('bash', 'zsh', 'fish')
# What is a path, though neither its type nor one of these words in place of its value says so.
_PATHS = {'checkpoint', 'data_dir', 'groups', 'input', 'manual_dir', 'output', 'cum', 'text_model',
          'workdir', 'a', 'others'}  # fmt: skip
_PLACES = ('DIR', 'FILE', 'FOLDER', 'JSON', 'MODEL')


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
      parser = _parser(entry)
    for action in parser._actions:
      _add_values(action)
    parts.add_parser(name, help=entry.help, parents=[parser], add_help=False)
  return whole


def _parser(entry: cli.Command) -> argparse.ArgumentParser:
  """The options of a command, without those that it refuses."""
  program = entry.load()
  if program.__name__ == 'mome_jax.main':
    mode = ''.join(entry.first).removeprefix('--mode=') or 'train'
    return program.make_parser(command_line.read_in(mode))
  parser = program.make_parser()
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      return action.choices[entry.first[0]]
  return parser


def _add_values(action: argparse.Action) -> None:
  """Names the values of an option where there is a list of them, or says that it takes a path."""
  known = {'source': sorted(sources.SOURCES), 'config': config_flag.names()}
  path = action.metavar in _PLACES or action.type is pathlib.Path
  if path or action.dest in _PATHS:
    action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
  elif action.dest in known and action.choices is None:
    action.choices = known[action.dest]


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.completion', description=__doc__, allow_abbrev=False)
  parser.add_argument('shell', choices=SHELLS, help='that the script is for')
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  print(script(make_parser().parse_args(dashed(argv)).shell))
  return 0


if __name__ == '__main__':
  sys.exit(main())
