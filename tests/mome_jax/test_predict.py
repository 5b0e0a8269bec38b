"""Prediction through its command line: geometry, labels, prompts, bad inputs, nothing half-written."""

import csv
import gzip
import itertools
import json
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from input_pipeline import volume
from mome_jax import checkpoint, outputs, predict, predictor, segment, state
from mome_jax.configs import demo
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder

NAMES = ('liver', 'spleen', 'left kidney')


@pytest.fixture(scope='module')
def config():
  config = demo.get_config()
  config.classes = NAMES
  config.model.backbone.size = 'tiny'
  config.data.spacing = (9.0, 9.0, 9.0)
  config.evaluation.window = (16, 16, 16)
  return config


@pytest.fixture(scope='module')
def model(config, tmp_path_factory):
  """A model folder with fresh weights: what it finds is noise, where it writes it is not."""
  import numpy as np

  folder = tmp_path_factory.mktemp('model') / 'm'
  mesh = jax.make_mesh((1, 1), ('data', 'expert'))
  optimizer = state.make_optimizer(config.train)
  fresh, _ = state.init_state(
    config, mesh, build_model(config.model), build_text_encoder(config.text), optimizer
  )
  params = jax.tree.map(np.array, fresh.params)
  params['model']['heads']['controller']['bias'][-1] = 0.0  # not rare: something is found
  checkpoint.save_model(folder, config, params)
  return folder
