r"""Patches of 192^3, eight times those of `paper_unet.py`: four devices share the depth of each.

python -m mome_jax.main --config=large_patch --workdir=DIR --config.data_dir=DIR \
    --config.data.sources="('lits', 'word')"

Never trained yet: neither time nor Dice is known. Compiled for 16 chips of TPU v5e with 4 patches a
step, it needs 12.3 of the 16 GiB of a chip and 211.8 TFLOP a step.
"""

import ml_collections

from mome_jax.configs import paper_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = paper_unet.get_config()
  config.data.patch = (192, 192, 192)
  config.train.batch_size = 4
  config.mesh.expert = 4
  config.mesh.spatial = True
  return config
