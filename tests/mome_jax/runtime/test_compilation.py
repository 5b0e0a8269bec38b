"""Options of the compiler, and where compiled programs are kept."""

import os
import subprocess
import sys

import jax
import pytest
from jax._src import compilation_cache, compiler
from jax.sharding import AxisType

from mome_jax import main
from mome_jax.errors import UserError
from mome_jax.runtime import compilation


@pytest.fixture
def no_cache(monkeypatch):
  monkeypatch.delenv('MOME_CACHE', raising=False)
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
  monkeypatch.setattr('mome_jax.training.config_check.check', lambda *_, **__: None)
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


def test_the_environment_moves_or_switches_off_the_cache(monkeypatch, tmp_path, no_cache):
  monkeypatch.setenv('MOME_CACHE', str(tmp_path / 'mine'))
  compilation.use_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'mine')
  monkeypatch.setenv('MOME_CACHE', 'off')
  assert compilation.cache_folder() == ''
  before = jax.config.jax_enable_compilation_cache
  try:
    compilation.use_cache()
    assert not jax.config.jax_enable_compilation_cache
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def test_a_folder_that_cannot_be_made_costs_the_cache_only(monkeypatch, tmp_path, no_cache, capsys):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('MOME_CACHE', str(tmp_path / 'file' / 'below'))
  before = jax.config.jax_enable_compilation_cache
  try:
    compilation.use_cache()
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
  assert 'compiled programs are not kept' in capsys.readouterr().err


@pytest.mark.parametrize(('folder', 'is_bucket'), [('{}', False), ('gs://bucket/cache', True)])
def test_a_bucket_holds_no_caches_of_xla_itself(folder, is_bucket, monkeypatch, tmp_path, no_cache):
  """They are of a GPU, in C++ that reads no buckets: the first program that it compiled failed."""
  monkeypatch.setenv('MOME_CACHE', folder.format(tmp_path))
  before = jax.config.jax_persistent_cache_enable_xla_caches
  try:
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir == folder.format(tmp_path)
    options = compiler.get_compile_options(1, 1)
    place = options.executable_build_options.debug_options.xla_gpu_per_fusion_autotune_cache_dir
  finally:
    jax.config.update('jax_persistent_cache_enable_xla_caches', before)
  assert (place == '') == is_bucket


def test_how_long_a_program_took_is_told_the_next_time(monkeypatch, tmp_path, no_cache):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  times = iter((0.0, 97.2, 200.0, 203.0, 0.0, 1.0))
  monkeypatch.setattr(compilation.time, 'perf_counter', lambda: next(times))
  lines = []
  for _ in range(2):
    with compilation.told('the train step', 'a small network', lines.append):
      pass
  assert lines == [
    'compiling the train step (the first time)',
    'compiled the train step in 97 s',
    'compiling the train step (97 s last time)',
    'compiled the train step in 3 s',
  ]
  (tmp_path / 'seconds.json').write_text('{"half')  # whatever is in there
  with compilation.told('the train step', 'a small network', lines.append):
    pass
  assert lines[4:] == [
    'compiling the train step (the first time)',
    'compiled the train step in 1 s',
  ]


CACHED = """
import sys, warnings
import jax, jax.numpy as jnp
from mome_jax.runtime import compilation
warnings.simplefilter('error')
compilation.use_cache()
def train_step(x):
  return jnp.sin(x) @ x
with compilation.told('the train step', 'key', print):
  step = jax.jit(train_step).lower(jnp.ones((3, 3))).compile()
print(float(step(jnp.ones((3, 3))).sum()))
"""


def test_an_entry_that_was_cut_short_is_removed_and_made_again(tmp_path):
  environment = {
    **os.environ, 'MOME_CACHE': str(tmp_path), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'
  }  # fmt: skip
  run = lambda: subprocess.run(
    [sys.executable, '-c', CACHED], env=environment, capture_output=True, text=True
  )
  first = run()
  (entry,) = tmp_path.glob('jit_train_step-*-cache')
  whole = entry.read_bytes()
  entry.write_bytes(whole[: len(whole) // 2])
  again = run()
  assert again.returncode == 0, again.stderr[-2000:]
  assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
  assert entry.stat().st_size > len(whole) // 2


def test_of_the_kept_programs_only_new_ones_are_looked_at(monkeypatch, tmp_path, no_cache):
  """All were read and unpacked at each start, of a cache that nothing empties."""
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  read = []
  monkeypatch.setattr(compilation_cache, 'decompress_executable', read.append)

  def start():
    with compilation.told('the train step', 'a small network', str):
      pass

  for times, name in enumerate(('one', 'two'), 1):
    entry = tmp_path / f'jit_train_step-{name}-cache'
    entry.write_bytes(name.encode())
    os.utime(entry, (times, times))
  start()
  assert sorted(read) == [b'one', b'two']
  read.clear()
  (tmp_path / 'jit_train_step-three-cache').write_bytes(b'three')
  start()
  assert sorted(read) == [b'three', b'two']  # which another process may have been writing


def test_an_entry_that_cannot_be_removed_costs_no_look_at_the_others(tmp_path, no_cache):
  """As of another user; a folder stands for it."""
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  (tmp_path / 'jit_train_step-one-cache').mkdir()
  (tmp_path / 'jit_train_step-two-cache').write_bytes(b'cut short')
  with compilation.told('the train step', 'a small network', str):
    pass
  assert sorted(path.name for path in tmp_path.glob('jit_*')) == [
    'jit_train_step-one-cache', 'jit_train_step-seen',
  ]  # fmt: skip
