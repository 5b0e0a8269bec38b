"""The command line of a run: config with overrides, workdir, mode, topology, distributed.

absl reads it, since values of the config are flags too; help and completion are argparse's manner.
"""

import argparse
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from input_pipeline.cli import Parser, called, from_home, spoken
from mome_jax.training import config_flag

MODES = ('train', 'evaluate', 'compile')
_NAMES = ('config', 'workdir', 'mode', 'topology', 'distributed', 'help')
_NEEDED = {
  'train': ('config', 'workdir'),
  'evaluate': ('workdir',),
  'compile': ('config', 'topology'),
}
# Of each mode what --help says of it, and the flags that it reads.
_TRAIN = """Trains an experiment and scores it on its held-out scans.

  python -m mome_jax.main --config=demo --workdir=runs/demo
  python -m mome_jax.main --config=mine.py --workdir=runs/mine --config.train.steps=5000

The same command again resumes where the run stopped. The workdir holds checkpoints, metrics.jsonl
and TensorBoard events, pictures/, and in the end evaluation/; `predict --checkpoint` reads it.

Exit code 0 if all was done; 75 after a preemption (SIGTERM) and 130 after Control-C, which save
first: the same command goes on; 2 where the command line cannot be read, 1 after any other error.
"""
_EVALUATE = """Scores a model on its held-out scans: Dice, NSD and HD95 of classes, with intervals.

  python -m mome_jax.main --mode=evaluate --workdir=runs/demo
  python -m mome_jax.main --mode=evaluate --workdir=runs/demo --config.evaluation.split=test
  python -m mome_jax.main --mode=evaluate --workdir=MODEL --config.data_dir=runs/data

The workdir is that of a training, or a model folder; it has its own config. The tables go to
evaluation/ in it, and replace those of an earlier evaluation. Of a model that has a name, shipped
or hf:ORG/NAME, they go to runs/shipped/evaluation and runs/ORG--NAME/evaluation.
"""
_COMPILE = """Tells what a train step would need on chips that are not here; nothing is trained.

  python -m mome_jax.main --mode=compile --config=paper_unet --topology=v5e:4x4
  python -m mome_jax.main --mode=compile --config=openkbp_cpu --topology=here

The chip's own compiler answers (TPUs: pip install -r requirements-aot.txt). On the console memory,
FLOPs, traffic and the bound that follows for a step; on standard output all of it as JSON.
"""
_HELP = {
  'train': (_TRAIN, ('config', 'workdir', 'distributed', 'help')),
  'evaluate': (_EVALUATE, ('workdir', 'config', 'distributed', 'help')),
  'compile': (_COMPILE, ('config', 'topology', 'help')),
}
_EXAMPLES = {'config': 'demo', 'topology': 'v5e:4x4', 'workdir': 'runs/demo'}


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Reads a command line, program first: config, workdir, mode, topology, distributed, help.

  Raises:
    FlagError, ConfigError: if it cannot be understood.
  """
  argv = config_flag.last_of_each(config_flag.of_trained_model(from_home(argv)))
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
    'This is one of several processes (docs/how-to/clusters.md). Also: MOME_DISTRIBUTED=1.',
    flag_values=values,
  )
  flags.DEFINE_bool('help', False, 'Print this.', short_name='h', flag_values=values)
  return values


def _check(values: flags.FlagValues, words: Sequence[str]) -> None:
  """Raises FlagError where flags are missing, or something would not be read."""
  if words:
    raise config_flag.FlagError(f'unknown argument {words[0]}; flags start with --')
  command = called() or f'--mode={values.mode}'
  for name in _NEEDED[values.mode]:
    if values[name].value in (None, ''):  # `--workdir=$UNSET` would be the folder one is in
      raise config_flag.FlagError(f'{command} needs --{name}, such as --{name}={_EXAMPLES[name]}')
  for name in _NAMES:
    if values[name].present and name not in (*read_in(values.mode), 'mode'):
      raise config_flag.FlagError(f'{command} does not read --{name}; leave it out')
  config_flag.check_asked(values)


def help_of_mode(values: flags.FlagValues) -> str:
  """What --help prints of the chosen mode alone."""
  return help_text(values, *_HELP[values.mode])


def help_text(values: flags.FlagValues, purpose: str, names: Sequence[str] = _NAMES) -> str:
  """What --help prints: the purpose of the program, and its flags."""
  lines = [spoken(purpose), 'Flags:']
  for name in names:
    choices = f'={"|".join(MODES)}' if name == 'mode' else ''
    text = textwrap.wrap(_help_of(values, name), 92, break_on_hyphens=False)
    lines += [f'  --{name}{choices}', *(f'      {line}' for line in text)]
  return '\n'.join(lines)


def read_in(mode: str) -> tuple[str, ...]:
  """The flags that a mode reads."""
  return _HELP[mode][1]


def make_parser(
  purpose: str, names: Sequence[str] = _NAMES, *, prog: str = 'python -m mome_jax.main'
) -> argparse.ArgumentParser:
  """Some flags as options, for the completion of shells; `parse` reads them, and overrides too."""
  values = _define([''])
  parser = Parser(prog=prog, description=purpose)
  for name in names:
    if name == 'help':  # argparse has its own
      continue
    options: dict[str, Any] = {'action': 'store_true'} if values[name].boolean else {}
    if name == 'mode':
      options['choices'] = MODES
    parser.add_argument(f'--{name}', help=_help_of(values, name), **options)
  return parser


def _help_of(values: flags.FlagValues, name: str) -> str:
  return values[name].help.rpartition('>: ')[2]
