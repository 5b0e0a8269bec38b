"""A model folder with fresh weights: what it finds is noise, where that lies is not."""

import jax
import numpy as np

from mome_jax import checkpoint
from mome_jax.configs import demo
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import optimizer, sharding, state


def save_model(folder, classes, bias=0.0):
  """Writes a tiny one of some classes, on a grid of 9 mm, that adds `bias` to all logits."""
  config = demo.get_config()
  config.classes = tuple(classes)
  config.model.backbone.size = 'tiny'
  config.data.spacing = (9.0, 9.0, 9.0)
  config.evaluation.window = (16, 16, 16)
  mesh = sharding.make_mesh(config.mesh)
  made, _ = state.init_state(
    config,
    mesh,
    build_model(config.model),
    build_text_encoder(config.text),
    optimizer.make_optimizer(config.train),
  )
  params = jax.tree.map(np.array, made.params)
  params['model']['heads']['controller']['bias'][-1] = bias  # not one voxel in a hundred
  checkpoint.save_model(folder, config, params)
  return folder
