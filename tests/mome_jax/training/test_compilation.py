"""Options of the compiler, and where compiled programs are kept."""

import jax
import pytest
from jax.sharding import AxisType

from mome_jax import main
from mome_jax.errors import UserError
from mome_jax.training import compilation


@pytest.fixture
def no_cache():
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def test_an_option_that_this_jax_does_not_know_is_left_out(monkeypatch):
  known = dict(compilation._CPU)
  monkeypatch.setattr(compilation, '_CPU', {'xla_of_another_version': '1', **known})
  assert compilation.options('cpu') == known
  assert compilation.options('tpu') == {}
  assert compilation.jit(lambda x: x + 1, 'cpu')(1) == 2


def test_a_wrong_value_of_an_option_is_left_out_too(monkeypatch):
  monkeypatch.setattr(compilation, '_CPU', {'xla_cpu_experimental_ynn_fusion_type': 'nonsense'})
  assert compilation.options('cpu') == {}


def test_asking_leaves_the_mesh_of_the_run():
  compilation._is_known.cache_clear()
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    assert compilation.options('cpu')
    assert jax.sharding.get_mesh() == mesh


def test_training_keeps_what_it_compiled(monkeypatch, tmp_path, no_cache, capsys):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(main.logging, 'set_verbosity', lambda level: None)
  monkeypatch.setattr('mome_jax.training.config_check.check', lambda config, data: None)
  places = []

  def train(config, workdir):
    places.append(jax.config.jax_compilation_cache_dir)
    raise UserError('enough')

  monkeypatch.setattr('mome_jax.training.loop.train', train)
  assert main.main(['--config=demo', f'--workdir={tmp_path / "run"}']) == 1
  assert 'enough' in capsys.readouterr().err
  assert places == [str(tmp_path / 'mome_jax')]


def test_a_cache_of_the_users_own_stays(tmp_path, no_cache):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  compilation.use_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
