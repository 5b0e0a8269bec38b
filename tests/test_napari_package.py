"""The plugin as napari's users install it; napari itself need not be there."""

import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

from mome_jax import __version__

PLUGIN = pathlib.Path(__file__).parents[1] / 'integrations' / 'napari'


def test_the_wheel_tells_napari_of_the_plugin(tmp_path):
  folder = shutil.copytree(PLUGIN, tmp_path / 'plugin')
  command = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp_path]
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  [path] = tmp_path.glob('*.whl')
  with zipfile.ZipFile(path) as wheel:
    names = set(wheel.namelist())
    [entries] = [name for name in names if name.endswith('entry_points.txt')]
    told = wheel.read(entries).decode()
  assert 'napari-mome = napari_mome:napari.yaml' in told.splitlines()
  files = {
    f'napari_mome/{file.name}' for file in (PLUGIN / 'napari_mome').iterdir() if file.is_file()
  }
  assert {name for name in names if 'dist-info' not in name} == files


def test_its_version_is_that_of_the_project():
  assert tomllib.loads((PLUGIN / 'pyproject.toml').read_text())['project']['version'] == __version__
