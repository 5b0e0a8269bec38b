"""Trains, evaluates, or compiles for chips that are not here.

  python -m mome_jax.main --config=demo --workdir=runs/demo
  python -m mome_jax.main --mode=evaluate --workdir=runs/demo
  python -m mome_jax.main --mode=compile --config=paper_unet --topology=v5e:4x4

Any value of the config can be changed on the command line: `--config.train.steps=100`. The same
command again resumes where the run stopped. `--mode=evaluate` needs no --config: the workdir, or a
model folder, has its own.

Exit code 0 if all was done; 75 after a preemption, when the same command goes on; 2 where the
command line cannot be read, 1 after any other error.
"""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

# TensorFlow reads these when it is first imported; it announces itself otherwise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import flags, logging

from input_pipeline.cli import Parser, spoken
from mome_jax.errors import UserError, command, one_line, writing
from mome_jax.training import config_flag

MODES = ('train', 'evaluate', 'compile')
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'  # as XLA begins its message


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
    'topology', None, 'To compile for: v5e:4x4, v5p:2x2x2, v6e:4x4, ... or cpu:8.',
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


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Reads a command line, program first: config, workdir, mode, topology, distributed, help.

  Raises:
    FlagError, ConfigError: if it cannot be understood.
  """
  argv = config_flag.of_trained_model(argv)
  values = _define(argv)
  words = config_flag.parse(values, argv)
  if not values.help:
    _check(values, words)
  return values


_FLAGS = ('config', 'workdir', 'mode', 'topology', 'distributed', 'help')


def _text(values: flags.FlagValues, name: str) -> str:
  return values[name].help.rpartition('>: ')[2]


def _help(values: flags.FlagValues) -> str:
  lines = [spoken(__doc__), 'Flags:']
  for name in _FLAGS:
    choices = f'={"|".join(MODES)}' if name == 'mode' else ''
    text = textwrap.wrap(_text(values, name), 92, break_on_hyphens=False)
    lines += [f'  --{name}{choices}', *(f'      {line}' for line in text)]
  return '\n'.join(lines)


def make_parser() -> argparse.ArgumentParser:
  """The flags as options, for the completion of shells; `parse` reads them, and overrides too."""
  values = _define([''])
  parser = Parser(prog='python -m mome_jax.main', description=__doc__)
  for name in _FLAGS[:-1]:
    options: dict[str, Any] = {'action': 'store_true'} if values[name].boolean else {}
    if name == 'mode':
      options['choices'] = MODES
    parser.add_argument(f'--{name}', help=_text(values, name), **options)
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  argv = [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]
  try:
    values = parse(argv)
  except config_flag.FlagError as error:
    print(f'error: {one_line(error)} (--help lists the flags)', file=sys.stderr)
    return 2
  if values.help:
    print(_help(values))
    return 0
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.training import compile_ahead, config_check

  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is normal
  if values.config is not None:
    config_check.check(values.config, data=values.mode != 'compile')
  if values.mode == 'compile':
    print(json.dumps(compile_ahead.compile_config(values.config, values.topology), indent=2))
    return 0
  return _run(values)


def _check(values: flags.FlagValues, words: Sequence[str]) -> None:
  """Raises FlagError where flags are missing or a word is none."""
  if words:
    raise config_flag.FlagError(f'unknown argument {words[0]}; flags start with --')
  needed = {'compile': ('config', 'topology'), 'train': ('config', 'workdir')}
  examples = {'config': 'demo', 'topology': 'v5e:4x4', 'workdir': 'runs/demo'}
  for name in needed.get(values.mode, ('workdir',)):
    if values[name].value is None:
      raise config_flag.FlagError(
        f'--mode={values.mode} needs --{name}, such as --{name}={examples[name]}'
      )


def _run(values: flags.FlagValues) -> int:
  import jax
  from etils import epath

  from mome_jax import checkpoint
  from mome_jax.training import compilation, loop, multihost, sharding

  if values.distributed:
    multihost.initialize()
  compilation.use_cache()
  workdir, config = epath.Path(values.workdir), values.config
  try:
    if values.mode == 'train':
      with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
      sharding.check_batch(sharding.make_mesh(config.mesh), config)  # before data are read
      config = loop.train(config, workdir)
    elif config is not None:
      config = checkpoint.for_evaluation(workdir, config)
    _evaluate(config or checkpoint.load_config(workdir), workdir, values.mode)
  except multihost.Preempted as notice:
    print(f'preempted: {notice}', file=sys.stderr)
    return multihost.PREEMPTED
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() > 1:
      multihost.abandon(error)
    if not str(error).startswith(_OUT_OF_MEMORY):
      raise
    raise UserError(
      f'the devices are out of memory ({str(error).splitlines()[0]}); lower train.batch_size, '
      'data.patch or model.class_chunk, or set model.remat'
    ) from error
  return 0


def _evaluate(config, workdir, mode: str) -> None:
  from mome_jax import evaluate
  from mome_jax.evaluate import held_out
  from mome_jax.training import multihost

  try:
    evaluate.evaluate(config, workdir)
  except held_out.NothingHeldOutError as error:
    if mode == 'evaluate':
      raise
    if multihost.is_lead():  # the training itself is whole
      print(f'not scored: {error}')


if __name__ == '__main__':
  sys.exit(main())
