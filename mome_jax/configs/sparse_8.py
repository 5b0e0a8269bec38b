r"""Banks of 8 sparse experts at the two middle scales of the full-size U-Net, 12 organs.

python -m input_pipeline.prepare --source=phantom --data_dir=data
python -m mome_jax.main --config=sparse_8 --workdir=DIR

Never trained yet: neither time nor Dice is known.
"""

import ml_collections

from mome_jax.configs import base, demo


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = base.get_config()
  config.classes = demo.get_config().classes
  config.data.sources = ('phantom',)

  config.model.bank.scales = (1, 2)
  config.model.bank.num_experts = 8
  config.model.bank.top_k = 2
  config.model.bank.executor = 'capacity'
  return config
