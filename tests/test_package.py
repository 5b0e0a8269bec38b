"""What is built and handed out."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import mome_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ('mome_jax', 'input_pipeline')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from a copy, as building writes beside the sources."""
  folder = tmp_path_factory.mktemp('wheel')
  skipped = shutil.ignore_patterns('__pycache__')
  for name in (*PACKAGES, 'tests'):
    shutil.copytree(ROOT / name, folder / name, ignore=skipped)
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copyfile(ROOT / name, folder / name)
  command = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', 'dist']
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  [path] = (folder / 'dist').glob('*.whl')
  return path


def test_the_wheel_holds_the_packages_whole_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  expected = {
    str(path.relative_to(ROOT))
    for package in PACKAGES
    for path in (ROOT / package).rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  metadata = {name for name in names if name.split('/')[0].endswith('.dist-info')}
  assert names - metadata == expected
  for package in PACKAGES:
    assert f'{package}/py.typed' in names
  assert 'mome_jax/assets/demo/head_neck.nii.gz' in names


def test_the_wheel_has_version_and_command(wheel):
  version = mome_jax.__version__
  assert wheel.name == f'mome_jax-{version}-py3-none-any.whl'
  with zipfile.ZipFile(wheel) as archive:
    text = archive.read(f'mome_jax-{version}.dist-info/entry_points.txt').decode()
  assert 'mome = mome_jax.cli:main' in text.splitlines()


@pytest.mark.slow
def test_make_package(tmp_path):
  """Builds, checks, installs into an empty environment, and segments a scan there."""
  copied = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True)
  for name in copied.stdout.decode().split('\0')[:-1]:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, tmp_path / name)
  environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  done = subprocess.run(
    ['make', 'package'], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  assert done.stdout.count('PASSED') == 2  # twine, of wheel and sdist
  assert '1 of 1 scans segmented' in done.stdout
