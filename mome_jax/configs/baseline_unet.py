"""The CLIP-Driven Universal Model on its U-Net: the last decoder layer alone, frozen text.

Its published weights become a model folder with this config by
python -m mome_jax.weights --source=universal_unet --checkpoint=FILE --output=DIR

Never trained here, and its published weights were not at hand: neither time nor Dice is known.
"""

import ml_collections

from mome_jax.configs import paper_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = paper_unet.get_config()
  config.model.experts = 'finest'
  config.model.head_activation = 'relu'
  config.text.mode = 'frozen'
  config.text.d_model = 512  # of the CLIP vectors
  return config
