"""The notebooks run from top to bottom, on one tiny model trained on three phantoms."""

import os
import pathlib
import subprocess
import sys

import compiled
import nbformat
import nibabel as nib
import pytest
import tiny
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
SETTINGS = (*tiny.SETTINGS, '--config.evaluation.pictures=0')


@pytest.fixture(scope='module')
def folder(tmp_path_factory, programs):
  """Where the notebooks run: the model is `model`, its data are `data`."""
  folder = tmp_path_factory.mktemp('notebooks')
  environment = {
    **compiled.variables(programs),
    'PYTHONPATH': str(ROOT),
    'MOME_MODEL': str(folder / 'model'),
    'MOME_DATA': str(folder / 'data'),
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    run = lambda *command: subprocess.run(
      [sys.executable, '-m', *command], cwd=folder, check=True, env=dict(os.environ)
    )
    run('input_pipeline.prepare', '--source=phantom', '--data_dir=data', '--spacing=12',
        '--brick=16', '--cases=3')  # fmt: skip
    run('mome_jax.main', f'--config={ROOT / "mome_jax/configs/demo.py"}', '--workdir=model',
        '--config.data_dir=data', *SETTINGS)  # fmt: skip
    yield folder


def test_there_are_three():
  assert [path.stem for path in NOTEBOOKS] == ['evaluate', 'quickstart', 'routing']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(folder, path, request, monkeypatch):
  if path.stem == 'quickstart':  # the shipped model, on a scan that it would fetch
    real_data = request.getfixturevalue('real_data')
    scan = nib.load(real_data / 'openkbp' / 'val' / 'pt_202_ct.nii.gz')
    nib.save(scan.slicer[10:58, 6:54, 40:96], folder / 'scan.nii.gz')
    monkeypatch.setenv('MOME_SCAN', str(folder / 'scan.nii.gz'))
    for name in compiled.SOON:  # it computes for longer than it compiles
      monkeypatch.delenv(name)
  notebook = nbformat.read(path, as_version=4)
  resources = {'metadata': {'path': str(folder)}}
  NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources).execute()
  text = ''.join(
    str(output.get('text', '')) for cell in notebook.cells for output in cell.get('outputs', [])
  )
  assert 'device: ' in text
  pictures = [
    output for cell in notebook.cells for output in cell.get('outputs', [])
    if 'image/jpeg' in output.get('data', {})
  ]  # fmt: skip
  assert pictures


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_light(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert path.stat().st_size < 400_000
  errors = [o for c in notebook.cells for o in c.get('outputs', []) if o.output_type == 'error']
  assert not errors


@pytest.mark.parametrize('name', ['evaluate', 'routing'])
def test_a_training_that_was_interrupted_goes_on(name, tmp_path, monkeypatch):
  """Its folder is there already; a model of one's own is never trained, whatever its path."""
  notebook = nbformat.read(ROOT / f'notebooks/{name}.ipynb', as_version=4)
  [cell] = [cell.source for cell in notebook.cells if 'STEPS = 300' in cell.source]
  modules = []
  monkeypatch.setattr(subprocess, 'run', lambda words, **_: modules.append(words[2]))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs/notebook').mkdir(parents=True)
  monkeypatch.delenv('MOME_MODEL', raising=False)
  exec(cell, {'os': os, 'subprocess': subprocess, 'sys': sys})
  assert modules == ['input_pipeline.prepare', 'mome_jax.main']
  monkeypatch.setenv('MOME_MODEL', str(tmp_path / 'mistyped'))
  exec(cell, {'os': os, 'subprocess': subprocess, 'sys': sys})
  assert len(modules) == 2
