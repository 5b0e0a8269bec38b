r"""Goes on from a trained model, on other data or with further classes.

python -m mome_jax.main --config=finetune:runs/demo --workdir=runs/mine \
    --config.data.sources="('nifti_folder',)" --config.classes="('liver', 'spleen')"

What stands after the colon is a model folder or workdir, or `shipped`: its config is taken over, so
that spacing, HU windows and network fit its parameters.

Two CPU cores, 1000 steps from openkbp_cpu with the target volume ptv70 as an eighth class and the
scans of the old ones: 15 min 44 s with scoring; the old classes stayed at a mean Dice of 73.0 %,
ptv70 reached 33.8 %.
"""

import ml_collections

from mome_jax.configs import base


def get_config(start: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    start: config of the model that stands after the colon, set to start from it.
  """
  config, usual = start.copy_and_resolve_references(), base.get_config()
  config.experimental = ()  # as few patients taught the start
  config.data.weights = config.data.augment_of = ()  # of its datasets
  config.data.fold = -1
  # Of its machine, which this one need not be.
  config.data.loader, config.data.num_parallel = usual.data.loader, usual.data.num_parallel
  config.data.cache_mb = usual.data.cache_mb
  config.evaluation.batch_size = usual.evaluation.batch_size
  config.mesh, config.profile = usual.mesh, usual.profile
  if config.train.freeze:  # of a stage that trained a part alone, as `router` does
    config.train.freeze = ()
    config.train.negatives = usual.train.negatives
  config.train.rates = ()  # a rate of 0 freezes too
  if config.model.anchor == 'equal':  # along with a router, experts would learn worse
    config.model.router_apart = True
  config.train.steps = 300
  if not config.init.finetunes:  # else a third generation would hardly learn
    config.train.learning_rate = config.train.learning_rate / 4
  config.init.finetunes = True
  config.train.warmup_steps = 20
  config.train.checkpoint_every = 100
  config.validation.every = 100
  config.validation.cases = config.validation.patience = 0  # set aside of its scans
  config.evaluation.checkpoint = 'last'
  config.evaluation.split, config.evaluation.prompts = usual.evaluation.split, 'default'
  return config
