r"""Head and neck, chest and abdomen in one model: real, partially labelled CT, two CPU cores.

for s in openkbp thorax chest_abdomen totalsegmentator_sample; do
  python -m input_pipeline.prepare --source=$s --manual_dir=DIR_OF_$s --data_dir=runs/data \
      --spacing=4,4,3 --brick=32
done
python -m mome_jax.main --config=regions_cpu --workdir=runs/regions_cpu

Choices are made with 'openkbp_tune' in the place of 'openkbp' in --config.data.sources. Classes
beyond those of OpenKBP rest on one to five patients and on labels that are partly made by rules and
models: the model knows that they exist, no number of them tells how good it is.
"""

import ml_collections

from mome_jax.configs import openkbp_cpu


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = openkbp_cpu.get_config()
  config.classes = (
    *config.classes,
    'right lung', 'left lung', 'lung tumor', 'heart', 'aorta', 'liver', 'spleen', 'stomach',
    'right kidney', 'left kidney', 'bladder',
  )  # fmt: skip
  config.data.sources = ('openkbp', 'thorax', 'chest_abdomen', 'totalsegmentator_sample')
  # Half of the patches are of OpenKBP, whose classes alone rest on many patients; the others share
  # the other half. Its name is that of the cases: the rule holds for openkbp_tune as well.
  config.data.balance = 'sources'
  config.data.weights = (('openkbp', 3.0),)
  config.model.class_chunk = len(config.classes)  # all at once
  return config
