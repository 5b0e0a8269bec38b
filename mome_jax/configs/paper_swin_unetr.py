r"""MoME on Swin UNETR: six scales, otherwise as `paper_unet.py`.

python -m mome_jax.main --config=paper_swin_unetr --workdir=DIR \
    --config.data_dir=DIR --config.data.sources="('lits', 'word')"

Never trained yet: neither time nor Dice is known. Compiled for chips of TPU v5e with a patch on
each, it needs 5.5 of the 16 GiB of a chip and 2.7 TFLOP a patch.
"""

import ml_collections

from mome_jax.configs import paper_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = paper_unet.get_config()
  config.model.backbone.name = 'swin_unetr'
  config.model.backbone.merging = 'monai'  # order of joined neighbours: monai, monai_v2, cum
  return config
