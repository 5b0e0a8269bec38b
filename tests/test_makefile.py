"""What the targets of the Makefile leave."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def make(folder, target):
  subprocess.run(
    ['make', '--silent', '-f', ROOT / 'Makefile', target], cwd=folder, check=True, timeout=60
  )
  return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def test_clean_keeps_trained_models(tmp_path):
  kept = {'runs/demo/config.json', 'runs/data/phantom/prepare.json', 'mome_jax/main.py'}
  gone = {'.venv/bin/python', '.venv-docs/stamp', '.venv-package/stamp',
          '.venv312/run.stamp', 'build/site/index.html',
          'mome_jax/__pycache__/main.pyc', '.pytest_cache/x',
          'mome_jax.egg-info/PKG-INFO'}  # fmt: skip
  for name in kept | gone:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('')
  assert make(tmp_path, 'clean') == kept
  assert make(tmp_path, 'clean') == kept  # nothing to do is no error
  assert make(tmp_path, 'clean-runs') == {'mome_jax/main.py'}


def test_what_python_imports_is_compiled_once():
  """Whatever the environment says: each of hundreds of processes would compile it anew."""
  show = 'show: ; @echo "<$$PYTHONDONTWRITEBYTECODE>"'
  printed = subprocess.run(
    ['make', '--no-print-directory', '-f', ROOT / 'Makefile', f'--eval={show}', 'show'],
    check=True, text=True, capture_output=True, env=os.environ | {'PYTHONDONTWRITEBYTECODE': '1'},
  ).stdout  # fmt: skip
  assert printed == '<>\n'


@pytest.fixture
def tests(pytestconfig):
  """The conftest of all tests, as a module."""
  [module] = [
    plugin
    for plugin in pytestconfig.pluginmanager.get_plugins()
    if getattr(plugin, '__file__', None) == str(ROOT / 'tests' / 'conftest.py')
  ]
  return module


def test_files_that_take_long_exist(tests):
  files = tests.long_files()
  assert len(files) == len(set(files)) > 0
  for file in files:
    assert file.is_file(), f'{tests.LONG}: {file} is gone'


def test_two_processes_take_the_longest_files_first(request, tests):
  """Each file in one piece, the short ones as they were collected, and in this order to the end."""
  here, (first, second, *_) = request.node.path, tests.long_files()
  items = [
    types.SimpleNamespace(path=path, name=name)
    for path, name in [(here, 'z'), (second, 'b'), (here, 'a'), (first, 'd'), (second, 'a')]
  ]
  tests.longest_first(items)
  assert [(item.path, item.name) for item in items] == [
    (first, 'd'), (second, 'b'), (second, 'a'), (here, 'z'), (here, 'a')]  # fmt: skip
  recipe = subprocess.run(
    ['make', '-n', 'test-fast'], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert '-n 2 --dist loadfile --no-loadscope-reorder' in recipe.stdout


@pytest.mark.parametrize(
  ('file', 'selected'), [('mome_jax/models/test_mome.py', 0), ('test_makefile.py', 1)]
)
def test_the_fast_ones_are_the_others(file, selected):
  command = [sys.executable, '-m', 'pytest', '-q', '--collect-only', '-m', 'not slow and not long']
  environment = {name: value for name, value in os.environ.items() if name != 'PYTEST_ADDOPTS'}
  done = subprocess.run(
    [*command, f'tests/{file}'], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert ('::' in done.stdout) == bool(selected), done.stdout
