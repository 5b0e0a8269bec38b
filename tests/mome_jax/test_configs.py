"""Every experiment describes a network that can be made, on classes and sources that exist."""

import functools
import importlib
import pathlib

import jax
import pytest

from input_pipeline import sources
from input_pipeline.anatomy import TEMPLATE
from mome_jax import configs
from mome_jax.configs import base
from mome_jax.models import build_model
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import config_flag, state

FOLDER = pathlib.Path(configs.__file__).parent
EXPERIMENTS = sorted({path.stem for path in FOLDER.glob('*.py')} - {'__init__', 'base', 'finetune'})


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_can_be_made(name):
  of_another = config_flag.AFTER_COLON.get(name) == 'NAME'
  config = config_flag.load(f'{name}:openkbp_cpu' if of_another else name)
  described = importlib.import_module(f'mome_jax.configs.{name}').__doc__
  assert 'python -m mome_jax' in described  # how it is run, or where its weights come from
  more = _keys(config) - _keys(base.get_config())
  assert all(key.startswith('model.backbone.') for key in more)  # each network has its own
  brought = {label for s in config.data.sources or () for label in sources.get_source(s).classes}
  assert set(config.classes) <= {*TEMPLATE.names(), *brought}
  encoder = build_text_encoder(config.text) if config.text.mode == 'joint' else None
  create = functools.partial(state.init_params, config, build_model(config.model), encoder)
  params = jax.eval_shape(create, jax.random.key(0))
  assert 1e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 1e9


def _keys(config, prefix=''):
  keys = set()
  for key, value in config.items():
    keys |= _keys(value, f'{prefix}{key}.') if hasattr(value, 'items') else {prefix + key}
  return keys
