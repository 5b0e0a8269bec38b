"""Trains and evaluates: `python -m mome_jax.main --config=mome_jax/configs/demo.py --workdir=DIR`.

Any value of the config can be changed on the command line: `--config.train.steps=100`. The same
command again resumes where the run stopped. `--mode=evaluate` needs no --config: the workdir, or a
model folder, has its own.
"""

import os
import sys

# TensorFlow reads these when it is first imported; it announces itself otherwise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from input_pipeline.bricks import NotPreparedError
from input_pipeline.pipeline import PipelineError
from mome_jax import checkpoint, evaluate, train
from mome_jax.checkpoint import CheckpointError
from mome_jax.postprocess import PostprocessError
from mome_jax.text.vectors import TextVectorError

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the experiment.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, logs, results.')
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate'], 'train ends with an evaluation; evaluate only that.'
)


def main(argv: list[str]) -> None:
  """Dispatches on --mode."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments {argv[1:]}; options start with --')
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is normal
  workdir = epath.Path(_WORKDIR.value)
  config = _CONFIG.value
  if config is None and _MODE.value == 'train':
    sys.exit('error: training needs --config, such as --config=mome_jax/configs/demo.py')
  try:
    if _MODE.value == 'train':
      train.train(config, workdir)
    evaluate.evaluate(config or checkpoint.load_config(workdir), workdir)
  except (
    CheckpointError, NotPreparedError, PipelineError, PostprocessError, TextVectorError,
    train.NonFiniteLossError,
  ) as error:  # fmt: skip
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['workdir'])
  sys.exit(app.run(main))
