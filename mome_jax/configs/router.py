r"""The router of another experiment alone, after its experts: the second of two stages.

python -m mome_jax.main --config=openkbp_cpu --workdir=runs/experts \
    --config.model.router_inputs=uniform
python -m mome_jax.main --config=router:openkbp_cpu --workdir=runs/router \
    --config.init.checkpoint=runs/experts

What stands after the colon is the experiment that trained the experts, under equal weights of all
scales; they and the text encoder stay as they are. A router that was trained along with its experts
cost them 0.9 points of Dice after 5,600 steps (docs/results/openkbp); afterwards it cannot, nor
apart from them in the same run (--config.model.router_apart=True).

One CPU core: 5 minutes of steps, by the time of one. Mean Dice 74.3 % over 7 organs of OpenKBP's 29
validation patients, 74.1 of the equal weights before; with another seed 74.0 and 74.2.
"""

import ml_collections


def get_config(experiment: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    experiment: the one that stands after the colon.
  """
  experiment.model.anchor = 'equal'
  experiment.train.freeze = ('(?!model/(router|mixture_share)).*',)
  experiment.train.steps = 1500
  experiment.train.negatives = 0  # what the experts make of other prompts is settled
  return experiment
