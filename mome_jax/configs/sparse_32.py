r"""Banks of 32 sparse experts at the two middle scales, spread over an expert axis of 4 devices.

python -m mome_jax.main --config=sparse_32 --workdir=DIR

Never trained yet: neither time nor Dice is known. Compiled for four chips of TPU v5e with a patch
on each, it needs 6.2 of the 16 GiB of a chip and 5.3 TFLOP a patch.
"""

import ml_collections

from mome_jax.configs import sparse_8


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = sparse_8.get_config()
  config.model.bank.num_experts = 32

  config.train.batch_size = 16
  config.mesh.expert = 4
  return config
