r"""MoME on Swin UNETR: six scales, otherwise as `paper_unet.py`.

python -m mome_jax.main --config=paper_swin_unetr --workdir=DIR \
    --config.data_dir=DIR --config.data.sources="('lits', 'word')"

Never trained yet: neither time nor Dice is known. Compiled for 16 chips of TPU v5e with 16 patches
a step, it needs 6.5 of the 16 GiB of a chip and 41.3 TFLOP a step.
"""

import ml_collections

from mome_jax.configs import paper_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = paper_unet.get_config()
  config.model.backbone.name = 'swin_unetr'
  config.model.backbone.merging = 'monai'  # order of joined neighbours: monai, monai_v2, cum
  return config
