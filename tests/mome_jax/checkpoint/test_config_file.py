"""Reading what earlier versions wrote beside their models."""

import functools
import json

import pytest

from mome_jax import checkpoint, shipped
from mome_jax.checkpoint.config_file import read_config
from mome_jax.configs import demo
from mome_jax.models import build_model


def earlier(tmp_path, **options):
  """A model folder's `config.json` as version 0.1 wrote it."""
  values = json.loads(demo.get_config().to_json_best_effort())
  values['model']['fusion'] = options.get('fusion', 'logits')
  values['model']['backbone']['space_to_depth'] = options.get('space_to_depth', False)
  values['model']['bank']['by_confidence'] = options.get('by_confidence', False)
  (tmp_path / 'params').mkdir()
  (tmp_path / 'config.json').write_text(json.dumps(values))
  return tmp_path


def test_options_that_are_no_more_are_left_out_where_they_change_nothing(tmp_path):
  folder = earlier(tmp_path)
  config = checkpoint.load_config(folder)
  assert config == demo.get_config()
  assert build_model(config.model).active_scales == (0, 1, 2, 3)


def test_a_file_without_them_is_read_as_it_is(tmp_path):
  (tmp_path / 'config.json').write_text('{"model": {"top_k": 2}, "seed": 3}')
  assert read_config(tmp_path / 'config.json') == {'model': {'top_k': 2}, 'seed': 3}


@pytest.mark.parametrize(('warm_start', 'anchor'), [(False, 'none'), (True, 'finest')])
def test_an_option_with_another_name_is_read(tmp_path, warm_start, anchor):
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({'model': {'warm_start': warm_start, 'top_k': 2}}))
  assert read_config(file) == {'model': {'anchor': anchor, 'top_k': 2}}


@pytest.mark.parametrize('value', ['null', '[]', '"yes"'])
def test_an_odd_value_of_an_option_with_another_name_is_told(tmp_path, value):
  file = tmp_path / 'config.json'
  file.write_text(f'{{"model": {{"warm_start": {value}}}}}')
  with pytest.raises(checkpoint.CheckpointError) as error:
    read_config(file)
  assert str(error.value) == (
    f'{file}: model.warm_start is {value}; expected false or true: correct it'
  )


@pytest.mark.parametrize(
  ('option', 'value', 'name'),
  [
    ('fusion', 'features', 'model.fusion'),
    ('space_to_depth', True, 'model.backbone.space_to_depth'),
    ('by_confidence', True, 'model.bank.by_confidence'),
  ],
)
def test_a_model_that_needs_one_is_refused(tmp_path, option, value, name):
  folder = earlier(tmp_path, **{option: value})
  with pytest.raises(checkpoint.CheckpointError, match=rf'{name} is {value!r}.*version 0\.1'):
    checkpoint.load_config(folder)


@pytest.mark.parametrize(
  'name', ['model.temperature', 'model.bank.noise', 'data.orientation', 'text.pooling']
)
def test_a_field_of_a_later_model_is_refused(tmp_path, name):
  folder = earlier(tmp_path)
  file = folder / 'config.json'
  values = json.loads(file.read_text())
  *sections, field = name.split('.')
  functools.reduce(dict.__getitem__, sections, values)[field] = 1
  file.write_text(json.dumps(values))
  with pytest.raises(checkpoint.CheckpointError) as error:
    checkpoint.load_config(folder)
  assert str(error.value) == (
    f'{file}: {name} is not known: written by a later version? update mome-jax'
  )


def test_fields_of_backbones_encoders_and_training_are_free(tmp_path):
  folder = earlier(tmp_path)
  file = folder / 'config.json'
  values = json.loads(file.read_text())
  values['model']['backbone']['merging'] = 'v2'
  values['text']['relative_attention_max_distance'] = 64  # as published encoders may have it
  values['train']['later'] = values['data']['augment']['later'] = values['later'] = 1
  file.write_text(json.dumps(values))
  config = checkpoint.load_config(folder)
  assert config.model.backbone.merging == 'v2' and config.train.later == 1


@pytest.mark.parametrize('folder', [shipped.MODEL, shipped.TEXT])
def test_models_of_the_package_load(folder):
  checkpoint.load_config(folder)


@pytest.mark.parametrize('text', ['[]', '{"model": null}', '{"model": {"bank": 3}}'])
def test_a_section_without_fields_is_told(tmp_path, text):
  folder = earlier(tmp_path)
  (folder / 'config.json').write_text(text)
  with pytest.raises(checkpoint.CheckpointError, match='not a config of this program .*no fields'):
    checkpoint.load_config(folder)


def test_a_damaged_file_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(checkpoint.CheckpointError, match=r'config\.json: not a config'):
    read_config(tmp_path / 'config.json')
