r"""MoME on nnU-Net's residual encoder U-Net (ResEnc M): six scales, otherwise as `paper_unet.py`.

python -m mome_jax.main --config=paper_resenc_unet --workdir=DIR --config.data_dir=DIR \
    --config.data.sources="('lits', 'word')"

The paper's mixture on the convolutional backbone that leads nnU-Net's own benchmark.
Never trained yet: neither time nor Dice is known.
"""

import ml_collections

from mome_jax.configs import paper_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = paper_unet.get_config()
  config.model.backbone.name = 'resenc_unet'
  return config
