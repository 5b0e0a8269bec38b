"""Trains and evaluates: `python -m mome_jax.main --config=mome_jax/configs/demo.py --workdir=DIR`.

Any value of the config can be changed on the command line: `--config.train.steps=100`. The same
command again resumes where the run stopped. `--mode=evaluate` needs no --config: the workdir, or a
model folder, has its own.
"""

import json
import os
import sys

# TensorFlow reads these when it is first imported; it announces itself otherwise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from mome_jax import aot, checkpoint, compilation, evaluate, held_out, multihost, train
from mome_jax.errors import UserError

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the experiment.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, logs, results.')
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'evaluate', 'compile'],
  'train ends with an evaluation; evaluate only that; compile prints what --topology would need.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'To compile for: v5e:4x4, v5p:2x2x2, v6e:4x4, ... or cpu:8.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  os.environ.get('MOME_DISTRIBUTED') == '1',
  'This is one of several processes; see multihost.initialize. Also: MOME_DISTRIBUTED=1.',
)


def main(argv: list[str]) -> None:
  """Dispatches on --mode."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments {argv[1:]}; options start with --')
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is normal
  if _MODE.value == 'compile':
    _compile()
    return
  if _WORKDIR.value is None:
    raise app.UsageError(f'--mode={_MODE.value} needs --workdir')
  workdir, config = epath.Path(_WORKDIR.value), _CONFIG.value
  if config is None and _MODE.value == 'train':
    sys.exit('error: training needs --config, such as --config=mome_jax/configs/demo.py')
  if _DISTRIBUTED.value:
    multihost.initialize()
  compilation.use_cache()
  try:
    if _MODE.value == 'train':
      train.train(config, workdir)
    _evaluate(config or checkpoint.load_config(workdir), workdir)
  except multihost.Preempted as notice:
    print(f'preempted: {notice}', file=sys.stderr)
    sys.exit(multihost.PREEMPTED)
  except UserError as error:
    sys.exit(f'error: {error}')
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    multihost.abandon(error)


def _evaluate(config, workdir: epath.Path) -> None:
  try:
    evaluate.evaluate(config, workdir)
  except held_out.NothingHeldOutError as error:
    if _MODE.value == 'evaluate':
      raise
    if multihost.is_lead():  # the training itself is whole
      print(f'not scored: {error}')


def _compile() -> None:
  if _CONFIG.value is None or _TOPOLOGY.value is None:
    raise app.UsageError('--mode=compile needs --config and --topology, such as v5e:4x4')
  try:
    print(json.dumps(aot.compile_config(_CONFIG.value, _TOPOLOGY.value), indent=2))
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  sys.exit(app.run(main))
