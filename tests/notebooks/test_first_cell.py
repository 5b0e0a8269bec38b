"""The first cell of a notebook, in an empty folder."""

import functools
import http.server
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import tomllib
import venv

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def first_cell(path):
  notebook = nbformat.read(path, as_version=4)
  return next(cell.source for cell in notebook.cells if cell.cell_type == 'code')


def run(cell, folder, *, python=sys.executable, **environment):
  """(exit code, what it printed) of a cell in a folder, without this checkout on the path."""
  kept = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'MOME_SOURCE')}
  done = subprocess.run(
    [python, '-c', cell], cwd=folder, capture_output=True, text=True, timeout=900,
    env=kept | {'JAX_PLATFORMS': 'cpu'} | environment,
  )  # fmt: skip
  return done.returncode, (done.stdout + done.stderr).strip()


def test_the_cells_differ_in_whether_they_train():
  quickstart, *others = (
    first_cell(path) for path in sorted(NOTEBOOKS, key=lambda p: p.stem != 'quickstart')
  )
  assert len(others) == 2 and 'TRAINS = False' in quickstart
  for cell in others:
    assert cell == quickstart.replace('TRAINS = False', 'TRAINS = True')


def test_the_jax_of_the_cell_is_that_of_the_project():
  scope = {}
  [line] = [line for line in first_cell(NOTEBOOKS[0]).splitlines() if line.startswith('JAX = ')]
  exec(line, scope)
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  [jax] = [one for one in map(Requirement, project['dependencies']) if one.name == 'jax']
  assert SpecifierSet(scope['JAX']) == jax.specifier


@pytest.fixture
def absent():
  """Nothing of the project is installed here, so that the cell has to look for it."""
  code, _ = run('import mome_jax', '/')
  if not code:
    pytest.skip('mome-jax is installed in this environment')


def test_an_empty_folder_without_a_source_is_explained(absent, tmp_path):
  code, told = run(first_cell(NOTEBOOKS[0]), tmp_path)
  assert code == 1
  assert told == (
    f'{tmp_path}: no MoME-JAX here; set SOURCE to its git URL, or put its wheel or checkout here'
  )


def test_what_is_importable_is_not_installed(tmp_path):
  for path in NOTEBOOKS:
    code, told = run(first_cell(path), tmp_path, PYTHONPATH=str(ROOT))
    assert code == 0 and told.splitlines()[-1].startswith('device: cpu with jax '), told


def test_a_promised_accelerator_that_jax_does_not_use_is_told(tmp_path):
  code, told = run(first_cell(NOTEBOOKS[0]), tmp_path, PYTHONPATH=str(ROOT), COLAB_GPU='1')
  assert code == 1 and 'the runtime has a gpu, jax uses the cpu' in told


@pytest.fixture
def repository(tmp_path):
  """Address of a copy of this repository, as a host of git serves it."""
  place = tmp_path / 'served' / 'mome-jax.git'
  subprocess.run(['git', 'clone', '--quiet', '--bare', ROOT, place], check=True)
  subprocess.run(['git', '-C', place, 'update-server-info'], check=True)
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=place.parent)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/{place.name}'
    server.shutdown()


@pytest.mark.slow  # installs the package and what it needs
@pytest.mark.parametrize('source', ['checkout', 'git', 'wheel'])
def test_a_fresh_environment_and_an_empty_folder(source, repository, tmp_path):
  """The first cell of the quickstart installs the package, which then answers from there."""
  venv.create(tmp_path / 'env', with_pip=True)
  python = tmp_path / 'env' / 'bin' / 'python'
  empty = tmp_path / 'empty'
  empty.mkdir()
  settings = {'MOME_SOURCE': str(ROOT)}
  if source == 'git':
    settings = {'MOME_SOURCE': repository}
  elif source == 'wheel':
    made = tmp_path / 'checkout'
    shutil.copytree(ROOT, made, ignore=shutil.ignore_patterns('.*', 'runs', 'shared', 'tests'))
    subprocess.run(
      [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', empty, made], check=True
    )
    settings = {}
  code, told = run(first_cell(ROOT / 'notebooks' / 'quickstart.ipynb'), empty, python=python,
                   **settings)  # fmt: skip
  assert code == 0 and 'device: cpu with jax' in told, told
  where = run('import mome_jax; print(mome_jax.__file__)', empty, python=python)
  assert where[0] == 0 and where[1].startswith(str(tmp_path / 'env'))
  lacking = run('import tensorflow', empty, python=python)
  assert 'No module named' in lacking[1]
