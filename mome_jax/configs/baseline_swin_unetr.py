"""The CLIP-Driven Universal Model on Swin UNETR, otherwise as `baseline_unet.py`.

python -m mome_jax.weights --source=universal_swin_unetr --checkpoint=FILE --output=DIR
"""

import ml_collections

from mome_jax.configs import baseline_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = baseline_unet.get_config()
  config.model.backbone.name = 'swin_unetr'
  config.model.backbone.merging = 'cum'
  return config
