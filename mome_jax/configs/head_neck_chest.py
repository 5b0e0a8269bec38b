r"""Head and neck organs and lungs, two CPU cores.

It goes on from `openkbp_fine`, whose data it takes:

python -m mome_jax.main --config=head_neck_chest --workdir=runs/head_neck_chest \
    --config.data_dir=runs/fine --config.init.checkpoint=runs/openkbp_fine
python -m mome_jax.main --config=head_neck_chest --workdir=runs/large_patches \
    --config.data_dir=runs/fine --config.init.checkpoint=runs/head_neck_chest \
    --config.data.patch="(64,64,64)" --config.train.steps=2600 \
    --config.evaluation.window="(64,64,64)" --config.evaluation.overlap=0.34

Chests, of which there are four, are turned, bent and mirrored more than necks, of which there are
158 and which lose 1.2 points of Dice by it (docs/results/openkbp). Two CPU cores: 51 to 66 minutes
of steps, and 80 with the larger patches. Mean Dice 75.6 % over 7 organs of OpenKBP's 29 validation
patients, then 75.9 %, NSD 69.8; lungs of two held-out chests 96.2 (right) and 95.2 % (left). In
necks, where nobody labelled them, they leave out the tips of the lungs. `other_regions` goes on
from here.
"""

import ml_collections

from mome_jax.configs import few_scans, openkbp_fine


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = openkbp_fine.get_config()
  config.experimental = tuple(name for name in config.experimental if not name.endswith(' lung'))
  few_scans.augment_sources(config, 'thorax', 'chest_abdomen')
  config.train.steps = 5000
  config.train.learning_rate = 1e-3
  return config
