"""What the targets of the Makefile leave."""

import pathlib
import subprocess

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
