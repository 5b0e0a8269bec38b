r"""Head and neck organs at 3 x 3 x 2.5 mm, chests beside, two CPU cores.

python -m input_pipeline.prepare --source=openkbp --manual_dir=DIR --data_dir=runs/data \
    --spacing=4,4,3 --brick=32
for s in openkbp thorax chest_abdomen; do
  python -m input_pipeline.prepare --source=$s --manual_dir=DIR_OF_$s --data_dir=runs/fine \
      --spacing=3,3,2.5 --brick=32
done
python -m mome_jax.main --config=openkbp_cpu --workdir=runs/coarse --config.train.steps=4200
python -m mome_jax.main --config=openkbp_fine --workdir=runs/openkbp_fine \
    --config.data_dir=runs/fine --config.init.checkpoint=runs/coarse

Two CPU cores: 30 minutes of steps, and 60. Mean Dice 74.9 % over 7 organs of the 29 validation
patients of OpenKBP, NSD 68.3. Chests are there to learn what a chest is not; their lungs are
learned too, from four patients, and do not hold up on another (Dice 88.6 and 72.1 %): of `thorax`,
NSCLC-R01-001 was left out, its two files moved away first. `head_neck_chest` goes on from here.
"""

import ml_collections

from mome_jax.configs import openkbp_cpu, regions_cpu


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = openkbp_cpu.get_config()
  regions_cpu.learn_regions(config)
  config.experimental = ('right lung', 'left lung', *config.experimental)
  config.data.spacing = (3.0, 3.0, 2.5)
  config.data.patch = (48, 48, 48)
  config.train.steps = 5500
  config.train.learning_rate = 2e-3
  config.evaluation.window = (48, 48, 48)
  return config
