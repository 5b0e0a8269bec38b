r"""Head and neck organs and lungs at 3 x 3 x 2.5 mm, two CPU cores: `openkbp_fine` goes on.

python -m mome_jax.main --config=head_neck_chest --workdir=runs/head_neck_chest \
    --config.data_dir=runs/fine --config.init.checkpoint=runs/openkbp_fine

Chests, of which there are four, are turned, bent and mirrored more than necks, of which there are a
hundred: what lungs need (`openkbp_fine`) costs necks 2.6 points of Dice (docs/results/regions).
"""

import ml_collections

from mome_jax.configs import few_scans, openkbp_fine


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = openkbp_fine.get_config()
  config.experimental = tuple(name for name in config.experimental if not name.endswith(' lung'))
  chests = {**few_scans.AUGMENTATION, 'p_mirror': 0.5}
  config.data.augment_of = (('thorax', chests), ('chest_abdomen', chests))
  config.train.steps = 5000
  config.train.learning_rate = 1e-3
  return config
