r"""Head and neck organs and lungs, and scans of limbs and an abdomen to learn what is not there.

It goes on from `head_neck_chest`, with larger patches; sources as there, and two more:

for s in totalsegmentator_sample sarcoma; do
  python -m input_pipeline.prepare --source=$s --manual_dir=DIR_OF_$s --data_dir=runs/fine \
      --spacing=3,3,2.5 --brick=32
done
python -m mome_jax.main --config=other_regions --workdir=runs/other_regions \
    --config.data_dir=runs/fine --config.init.checkpoint=runs/large_patches
"""

import ml_collections

from mome_jax.configs import head_neck_chest


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = head_neck_chest.get_config()
  ((_, strong), *_) = config.data.augment_of
  others = ('totalsegmentator_sample', 'sarcoma')
  config.data.sources += others
  config.data.augment_of += tuple((source, strong) for source in others)
  config.data.weights = (('openkbp', 9.0),)  # seven patches in ten
  config.data.patch = (64, 64, 64)
  config.train.steps = 3000
  config.evaluation.window = (64, 64, 64)
  config.evaluation.overlap = 0.34
  return config
