r"""Goes on from a trained model, on other data or with further classes.

python -m mome_jax.main --config=finetune:runs/demo --workdir=runs/mine \
    --config.data.sources="('nifti_folder',)" --config.classes="('liver', 'spleen')"

What stands after the colon is a model folder or workdir: its config is taken over, so that spacing,
HU windows and network fit its parameters.

Two CPU cores, 1000 steps from openkbp_cpu with the target volume ptv70 as an eighth class and the
scans of the old ones: 15 min 44 s with scoring; the old classes stayed at a mean Dice of 73.0 %,
ptv70 reached 33.8 %.
"""

from mome_jax import checkpoint


def get_config(model: str = 'runs/demo'):
  """Returns the experiment.

  Args:
    model: to start from.
  """
  config = checkpoint.load_config(model)
  config.init.checkpoint = model
  if config.text.mode == 'frozen':
    config.text.vectors = str(checkpoint.text_file(model, config))
  config.train.steps = 300
  config.train.learning_rate = config.train.learning_rate / 4
  config.train.warmup_steps = 20
  config.train.checkpoint_every = 100
  return config
