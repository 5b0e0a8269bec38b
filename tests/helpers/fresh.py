"""A model folder with fresh weights: what it finds is noise, where that lies is not."""

import functools

import compiled
import jax
import numpy as np

from mome_jax import checkpoint
from mome_jax.configs import demo
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import optimizer, sharding, state


def make_config():
  """A tiny model on a grid of 9 mm."""
  config = demo.get_config()
  config.model.backbone.size = 'tiny'
  config.data.spacing = (9.0, 9.0, 9.0)
  config.evaluation.window = (16, 16, 16)
  return config


@functools.cache
def make_params():
  """Its parameters, which no class has a part in: compiled once in a process of tests."""
  config = make_config()
  with compiled.soon():
    made, _ = state.init_state(
      config,
      sharding.make_mesh(config.mesh),
      build_model(config.model),
      build_text_encoder(config.text),
      optimizer.make_optimizer(config.train),
    )
  return jax.tree.map(np.array, made.params)


def save_model(folder, classes, bias=0.0):
  """Writes one of some classes that adds `bias` to all logits."""
  config = make_config()
  config.classes = tuple(classes)
  params = jax.tree.map(np.copy, make_params())
  params['model']['heads']['controller']['bias'][-1] = bias  # not one voxel in a hundred
  checkpoint.save_model(folder, config, params)
  return folder
