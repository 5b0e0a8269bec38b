r"""Head and neck organs, lungs, and scans that teach what is not there: the model of the package.

It goes on from `head_neck_chest`, with its sources and two more, limbs and an abdomen:

for s in totalsegmentator_sample sarcoma; do
  python -m input_pipeline.prepare --source=$s --manual_dir=DIR_OF_$s --data_dir=runs/fine \
      --spacing=3,3,2.5 --brick=32
done
python -m mome_jax.main --config=other_regions --workdir=runs/first --config.data_dir=runs/fine \
    --config.init.checkpoint=runs/large_patches --config.train.steps=3000 \
    --config.data.weights="(('openkbp',9.0),)"
python -m mome_jax.main --config=other_regions --workdir=runs/other_regions \
    --config.data_dir=runs/fine --config.init.checkpoint=runs/first
python -m mome_jax.export --checkpoint=runs/other_regions --output=models/openkbp \
    --dtype=bfloat16 --without-experimental

Two CPU cores: 57 and 37 minutes of steps. Mean Dice 75.9 % over 7 organs of OpenKBP's 29
validation patients, NSD 69.9, as before; what is marked in two held-out scans of limbs fell from
228 to 18 ml (docs/results/README.md).
"""

import ml_collections

from mome_jax.configs import few_scans, head_neck_chest


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = head_neck_chest.get_config()
  others = ('totalsegmentator_sample', 'sarcoma')
  config.data.sources += others
  few_scans.augment_sources(config, *others)
  # Two patches in three are of OpenKBP, two in fifteen of limbs.
  config.data.weights = (('openkbp', 10.0), ('sarcoma', 2.0))
  config.data.patch = (64, 64, 64)
  config.train.steps = 2000
  config.evaluation.window = (64, 64, 64)
  config.evaluation.overlap = 0.34
  return config
