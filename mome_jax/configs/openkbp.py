r"""Head and neck organs on real, partially labelled CT: the full-size U-Net for one large GPU.

python -m input_pipeline.openkbp_download --output=DIR
python -m input_pipeline.prepare --source=openkbp --manual_dir=DIR --data_dir=data \
    --spacing=3,3,2.5
python -m mome_jax.main --config=openkbp --workdir=DIR

Never trained yet: neither time nor Dice is known.
"""

import ml_collections

from mome_jax.configs import base, openkbp_cpu


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  small = openkbp_cpu.get_config()
  config = base.get_config()
  config.classes = small.classes
  config.data.sources = small.data.sources
  config.data.spacing = (3.0, 3.0, 2.5)  # as most slices; in the plane 2.7 to 5.4, median 3.9
  config.data.windows = small.data.windows
  config.data.balance = small.data.balance
  config.data.foreground = small.data.foreground
  config.data.augment.p_mirror = 0.5

  config.train.steps = 30_000
  config.train.batch_size = 4
  config.train.learning_rate = 1e-3
  config.train.expert_loss = small.train.expert_loss
  config.validation.every = 1000
  config.evaluation.postprocess = small.evaluation.postprocess
  return config
