"""What `mome info` tells."""

import json
import pathlib

import jax
import numpy as np
import pytest

import mome_jax
from mome_jax import checkpoint, info
from mome_jax.inference.loaded_model import SHIPPED


def test_json_holds_what_is_installed_here(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv('MOME_CACHE', raising=False)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    assert info.main(['--json']) == 0
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  facts = json.loads(capsys.readouterr().out)
  assert facts['version'] == mome_jax.__version__
  assert facts['packages']['jax'] == jax.__version__
  assert len(facts['devices']) == len(jax.devices())
  assert facts['compilation_cache'] == str(tmp_path / 'mome_jax')
  [model] = facts['models']
  assert pathlib.Path(model['path']) == SHIPPED
  config = json.loads((SHIPPED / 'config.json').read_text())
  assert [one['name'] for one in model['classes']] == config['classes']
  assert model['spacing_mm'] == config['data']['spacing'] == [3, 3, 2.5]
  [mandible] = [one for one in model['classes'] if one['name'] == 'mandible']
  assert 'jaw bone' in mandible['synonyms'] and not mandible['experimental']


def test_the_page_names_model_and_classes(capsys):
  assert info.main([]) == 0
  text = capsys.readouterr().out
  assert 'Model openkbp, 3 x 3 x 2.5 mm' in text and 'jaw bone' in text


def test_any_model_is_described(tmp_path, capsys):
  config = checkpoint.load_config('shipped')
  config.classes = ('liver',)
  checkpoint.save_model(tmp_path / 'mine', config, {'model': {'a': np.ones(2)}})
  assert info.main(['--json', str(tmp_path / 'mine'), 'shipped']) == 0
  mine, ours = json.loads(capsys.readouterr().out)['models']
  assert (mine['name'], mine['path']) == ('mine', str(tmp_path / 'mine'))
  assert [one['name'] for one in mine['classes']] == ['liver']
  assert pathlib.Path(ours['path']) == SHIPPED
  assert info.main([str(tmp_path / 'none')]) == 1
  assert 'none: no model there' in capsys.readouterr().err


@pytest.mark.parametrize(('error', 'told'), [
  (RuntimeError("Unable to initialize backend 'tpu': it is in use"), "backend 'tpu': it is in use"),
  (AssertionError(), 'JAX has none of JAX_PLATFORMS=cuda'),
])  # fmt: skip
def test_what_is_installed_is_told_where_no_device_is(error, told, capsys, monkeypatch):
  def devices():
    raise error

  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  monkeypatch.setattr(jax, 'devices', devices)
  assert info.main([]) == 0
  text = capsys.readouterr().out
  assert 'Devices    none: ' in text and told in text and 'Model openkbp' in text
  assert info.main(['--json']) == 0
  facts = json.loads(capsys.readouterr().out)
  assert facts['devices'] == [] and told in facts['no_devices']
