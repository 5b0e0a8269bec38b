r"""Another experiment, for regions of which there are few labelled scans: stronger augmentation.

python -m mome_jax.main --config=few_scans:openkbp_cpu --workdir=runs/few_scans

What stands after the colon is any experiment: a name, a file, or `finetune:shipped`. A config of
your own calls `augment_strongly` instead. Time and Dice are those of the experiment: patches take
longer, on the host, beside the steps. With mirror images it cost OpenKBP, which has many scans, 1.2
points of Dice (docs/results/openkbp).
"""

import ml_collections

# Patches of some 150 mm; what is not named here stays as the experiment has it.
AUGMENTATION = {
  'p_rotate': 0.3,
  'max_degrees': 25.0,
  'p_zoom': 0.3,
  'zoom': (0.75, 1.35),
  'p_stretch': 0.15,
  'stretch': (0.85, 1.2),
  'p_shear': 0.15,
  'p_elastic': 0.1,
  'elastic': (2.0, 6.0),
  'p_warp': 0.25,
  'hold_voxel': True,
  'p_field': 0.15,
  'p_contrast': 0.25,
  'p_content': 0.15,
  'p_streaks': 0.1,
  'p_thick_slices': 0.15,
}


def augment_strongly(config: ml_collections.ConfigDict) -> None:
  """Switches it on in an experiment."""
  config.data.augment.update(AUGMENTATION)


def augment_sources(config: ml_collections.ConfigDict, *sources: str) -> None:
  """Switches it on for some sources alone, with mirror images."""
  strong = {**AUGMENTATION, 'p_mirror': 0.5}
  config.data.augment_of += tuple((source, strong) for source in sources)


def get_config(experiment: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    experiment: the one that stands after the colon.
  """
  augment_strongly(experiment)
  return experiment
