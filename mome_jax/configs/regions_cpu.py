r"""Head and neck, chest and abdomen in one model: real, partially labelled CT, two CPU cores.

for s in openkbp thorax chest_abdomen; do
  python -m input_pipeline.prepare --source=$s --manual_dir=DIR_OF_$s --data_dir=runs/data \
      --spacing=4,4,3 --brick=32
done
python -m mome_jax.main --config=regions_cpu --workdir=runs/experts \
    --config.model.router_inputs=uniform
python -m mome_jax.main --config=router:regions_cpu --workdir=runs/regions_cpu \
    --config.init.checkpoint=runs/experts

48 minutes of one core that other work shared, for the experts. Mean Dice 73.8 % over the 7 organs
of the 29 validation patients of OpenKBP (73.4 with another seed), +2.7 (+1.0) over the finest
decoder layer alone, trained likewise; without NSCLC-R01-001 in training, lungs of a held-out chest
95.1 and 94.4 %. The abdomen rests on one patient and does not hold up on another:
docs/results/regions.
"""

import ml_collections

from mome_jax.configs import few_scans, openkbp_cpu


def learn_regions(config: ml_collections.ConfigDict) -> None:
  """Adds chest and abdomen to an experiment on OpenKBP."""
  # Of few patients, or of no use yet.
  config.experimental = (
    'lung tumor', 'heart', 'aorta', 'liver', 'spleen', 'stomach', 'right kidney', 'left kidney',
  )  # fmt: skip
  config.classes = (*config.classes, 'right lung', 'left lung', *config.experimental)
  config.data.sources = ('openkbp', 'thorax', 'chest_abdomen')
  # Three patches in four are of OpenKBP, whose classes alone rest on many patients. Its name is
  # that of the cases: the rule holds for openkbp_tune as well.
  config.data.balance = 'sources'
  config.data.weights = (('openkbp', 6.0),)
  config.model.class_chunk = 32  # all at once, with prompts of other anatomy
  config.train.ema_decay = 0.998
  config.train.checkpoint_every = 500
  config.validation.every = 0


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = openkbp_cpu.get_config()
  learn_regions(config)
  # As in head_neck_chest: what makes many scans of few costs those of which there are many.
  few_scans.augment_sources(config, 'thorax', 'chest_abdomen')
  config.model.anchor = 'equal'
  return config
