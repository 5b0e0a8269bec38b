r"""Head and neck organs on real, partially labelled CT, sized for two CPU cores.

python -m input_pipeline.openkbp_download --output=DIR
python -m input_pipeline.prepare --source=openkbp --manual_dir=DIR --data_dir=runs/data \
    --spacing=4,4,3 --brick=32
python -m mome_jax.main --config=openkbp_cpu --workdir=runs/openkbp_cpu

Two CPU cores: 28 minutes of steps, 32 with scoring. Mean Dice 73.2 % over 7 organs of the 29
validation patients, 73.5 % with another seed. That was before prompts of other anatomy and the
educated text encoder (25 and 26 November 2026). Since, its experts under equal weights
(--config.model.router_inputs=uniform) have 74.1 %, with their router afterwards
(`router:openkbp_cpu`) 74.3 %, with a router apart (--config.model.anchor=equal and
--config.model.router_apart=True) 74.0 %, and the baseline (--config.model.experts=finest) 73.1 %.
"""

import ml_collections

from mome_jax.configs import demo


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = demo.get_config()
  config.classes = (
    'brainstem', 'spinal cord', 'right parotid', 'left parotid', 'esophagus', 'larynx', 'mandible',
  )  # fmt: skip
  config.data.sources = ('openkbp',)
  config.data.spacing = (4.0, 4.0, 3.0)
  config.data.windows = ((-175.0, 250.0), (-1000.0, 1000.0))
  config.data.patch = (40, 40, 40)

  config.train.steps = 5600
  config.train.ema_decay = 0.995
  config.train.log_every = 25
  config.train.checkpoint_every = 250
  config.train.warmup_steps = 50

  config.validation.every = 800
  config.validation.patches = 64

  # Chosen on openkbp_tune: windows of the patch's size, and the largest component of each organ.
  config.evaluation.window = (40, 40, 40)
  config.evaluation.postprocess = ('largest',)
  return config
