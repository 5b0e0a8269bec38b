"""The command line of a run: config with overrides, workdir, mode, topology, distributed.

absl reads it, since values of the config are flags too; help and completion are argparse's manner.
"""

import argparse
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from input_pipeline.cli import Parser, spoken
from mome_jax.training import config_flag

MODES = ('train', 'evaluate', 'compile')
_NAMES = ('config', 'workdir', 'mode', 'topology', 'distributed', 'help')
_NEEDED = {
  'train': ('config', 'workdir'),
  'evaluate': ('workdir',),
  'compile': ('config', 'topology'),
}
_EXAMPLES = {'config': 'demo', 'topology': 'v5e:4x4', 'workdir': 'runs/demo'}


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Reads a command line, program first: config, workdir, mode, topology, distributed, help.

  Raises:
    FlagError, ConfigError: if it cannot be understood.
  """
  argv = config_flag.last_of_each(config_flag.of_trained_model(argv))
  values = _define(argv)
  words = config_flag.parse(values, argv)
  if not values.help:
    _check(values, words)
  return values


def _define(argv: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  config_flag.define('config', values, argv)
  flags.DEFINE_string(
    'workdir', None, 'Folder of the run: checkpoints, logs, results.', flag_values=values
  )
  flags.DEFINE_enum(
    'mode', 'train', MODES,
    'train ends with an evaluation; evaluate only that; compile prints what --topology would need.',
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    'topology', None, 'To compile for: v5e:4x4, v5p:2x2x2, v6e:4x4, ..., cpu:8, or here.',
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool(
    'distributed',
    os.environ.get('MOME_DISTRIBUTED') == '1',
    'This is one of several processes; see multihost.initialize. Also: MOME_DISTRIBUTED=1.',
    flag_values=values,
  )
  flags.DEFINE_bool('help', False, 'Print this.', short_name='h', flag_values=values)
  return values


def _check(values: flags.FlagValues, words: Sequence[str]) -> None:
  """Raises FlagError where flags are missing or a word is none."""
  if words:
    raise config_flag.FlagError(f'unknown argument {words[0]}; flags start with --')
  for name in _NEEDED[values.mode]:
    if values[name].value is None:
      raise config_flag.FlagError(
        f'--mode={values.mode} needs --{name}, such as --{name}={_EXAMPLES[name]}'
      )


def help_text(values: flags.FlagValues, purpose: str) -> str:
  """What --help prints below the purpose of the program."""
  lines = [spoken(purpose), 'Flags:']
  for name in _NAMES:
    choices = f'={"|".join(MODES)}' if name == 'mode' else ''
    text = textwrap.wrap(_help_of(values, name), 92, break_on_hyphens=False)
    lines += [f'  --{name}{choices}', *(f'      {line}' for line in text)]
  return '\n'.join(lines)


def make_parser(purpose: str, prog: str = 'python -m mome_jax.main') -> argparse.ArgumentParser:
  """The flags as options, for the completion of shells; `parse` reads them, and overrides too."""
  values = _define([''])
  parser = Parser(prog=prog, description=purpose)
  for name in _NAMES[:-1]:
    options: dict[str, Any] = {'action': 'store_true'} if values[name].boolean else {}
    if name == 'mode':
      options['choices'] = MODES
    parser.add_argument(f'--{name}', help=_help_of(values, name), **options)
  return parser


def _help_of(values: flags.FlagValues, name: str) -> str:
  return values[name].help.rpartition('>: ')[2]
