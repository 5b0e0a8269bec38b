r"""MoME from the published weights of the CLIP-Driven Universal Model: at first equal to it.

python -m mome_jax.weights --source=universal_unet --checkpoint=unet.pth --output=runs/cum
python -m mome_jax.main --config=from_universal --workdir=DIR --config.data_dir=DIR \
    --config.data.sources="('lits', 'word')"

The coarser experts and the router begin at random behind a learned share of zero. Never trained, as
the published weights were not at hand: neither time nor Dice is known.
"""

import ml_collections

from mome_jax.configs import baseline_unet


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = baseline_unet.get_config()
  config.model.experts = 'pyramid'
  config.model.anchor = 'finest'
  config.init.checkpoint = 'runs/cum'
  config.text.vectors = 'runs/cum/text.npz'
  return config
