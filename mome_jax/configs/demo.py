"""The demo: phantom CT with partial labels, minutes on two CPU cores.

python -m input_pipeline.prepare --source=phantom --data_dir=runs/data --spacing=4 --brick=32
python -m mome_jax.main --config=mome_jax/configs/demo.py --workdir=runs/demo
"""

from mome_jax.configs import base


def get_config():
  """Returns the experiment."""
  config = base.get_config()
  config.data_dir = 'runs/data'
  config.classes = (
    'spleen', 'right kidney', 'left kidney', 'liver', 'stomach', 'aorta', 'pancreas',
    'right lung', 'left lung', 'bladder', 'liver tumor', 'kidney cyst',
  )  # fmt: skip
  config.data.sources = ('phantom',)
  config.data.spacing = (4.0, 4.0, 4.0)
  config.data.windows = ((-175.0, 250.0), (-1000.0, 400.0))
  config.data.patch = (48, 48, 48)

  config.model.backbone.size = 'small'
  config.model.dtype = 'float32'

  config.train.steps = 350
  config.train.batch_size = 1
  config.train.learning_rate = 2e-3
  config.train.warmup_steps = 20
  config.train.ema_decay = 0.98
  config.train.log_every = 10
  config.train.checkpoint_every = 150

  config.evaluation.window = (64, 64, 64)
  config.evaluation.overlap = 0.25
  return config
