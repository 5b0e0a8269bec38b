"""Trains, evaluates, or compiles for chips that are not here.

  python -m mome_jax.main --config=demo --workdir=runs/demo
  python -m mome_jax.main --mode=evaluate --workdir=runs/demo
  python -m mome_jax.main --mode=compile --config=paper_unet --topology=v5e:4x4

Any value of the config can be changed on the command line: `--config.train.steps=100`. The same
command again resumes where the run stopped. `--mode=evaluate` needs no --config: the workdir, or a
model folder, has its own. `--mode=MODE --help` tells more of one.

Exit code 0 if all was done; 75 after a preemption (SIGTERM) and 130 after Control-C, which save
first: the same command goes on; 2 where the command line cannot be read, 1 after any other error.
"""

import functools
import json
import os
import sys
from collections.abc import Collection, Sequence

# TensorFlow reads these when it is first imported; it announces itself otherwise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import flags
from ml_collections import ConfigDict

from input_pipeline import stopping
from input_pipeline.cli import called
from mome_jax.errors import command, writing
from mome_jax.training import command_line, config_flag
from mome_jax.training.command_line import parse

__all__ = ['main', 'make_parser', 'parse']
make_parser = functools.partial(command_line.make_parser, __doc__)


@command
@stopping.resumable
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  argv = [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]
  values = parse(argv)
  if values.help:
    of_mode = called() or values['mode'].present
    text = command_line.help_of_mode(values) if of_mode else command_line.help_text(values, __doc__)
    print(text)
    return 0
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax import checkpoint
  from mome_jax.training import compile_ahead, config_check, roofline

  if values.config is not None:
    begun = values.mode == 'train' and checkpoint.goes_on(values.workdir)
    model = values.workdir if begun or values.mode == 'evaluate' else ''
    config_check.check(values.config, data=values.mode != 'compile', model=model)
  if values.mode == 'compile':
    report = compile_ahead.compile_config(values.config, values.topology)
    print(json.dumps(report, indent=2))
    print(roofline.table(report), file=sys.stderr)
    too_large = [report[step]['error'] for step in ('see', 'read') if 'error' in report[step]]
    for error in too_large:
      print(f'error: {error}', file=sys.stderr)
    return 1 if too_large else 0
  return _run(values)


def _run(values: flags.FlagValues) -> int:
  from mome_jax.runtime import process
  from mome_jax.training import multihost

  if values.distributed:
    multihost.initialize()
  process.prepare()
  score = functools.partial(_evaluate, asked=config_flag.asked(values))
  run = _train if values.mode == 'train' else score
  try:
    with multihost.lone_errors(), multihost.device_errors(), multihost.outside_the_steps():
      run(values.config, values.workdir)
  except multihost.Preempted as notice:
    preempted = notice.code == multihost.PREEMPTED
    print(f'preempted: {notice}' if preempted else f'interrupted: {notice}', file=sys.stderr)
    if not notice.agreed:
      multihost.leave(notice.code)
    return notice.code
  return 0


def _train(config: ConfigDict, place: str) -> None:
  from mome_jax import checkpoint, evaluate
  from mome_jax.training import loop, multihost, sharding

  workdir = checkpoint.own_folder(place)
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  sharding.check_batch(sharding.make_mesh(config.mesh), config)  # before data are read
  config = loop.train(config, workdir)
  multihost.listen_again()  # its steps may all have been done before
  try:
    evaluate.evaluate(config, workdir)
  except evaluate.NothingHeldOutError as error:
    if multihost.is_lead():  # the training itself is whole
      print(f'not scored: {error}')


def _evaluate(config: ConfigDict | None, workdir: str, *, asked: Collection[str] = ()) -> None:
  from mome_jax import checkpoint, evaluate
  from mome_jax.training import multihost

  multihost.listen_again()
  evaluate.evaluate(checkpoint.for_evaluation(workdir, config), workdir, asked)


if __name__ == '__main__':
  sys.exit(main())
