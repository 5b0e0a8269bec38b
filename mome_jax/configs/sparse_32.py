r"""Banks of 32 sparse experts at the two middle scales, spread over an expert axis of 4 devices.

python -m mome_jax.main --config=mome_jax/configs/sparse_32.py --workdir=DIR
"""

from mome_jax.configs import sparse_8


def get_config():
  """Returns the experiment."""
  config = sparse_8.get_config()
  config.model.bank.num_experts = 32

  config.train.batch_size = 16
  config.mesh.expert = 4
  return config
