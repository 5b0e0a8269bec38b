"""The real program trains alike on one device, on a mesh, and as several processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = [
  f'--config={ROOT / "mome_jax/configs/demo.py"}',
  '--config.data_dir=data',
  '--config.data.spacing=(12.0, 12.0, 12.0)',
  '--config.data.patch=(16, 16, 16)',
  '--config.evaluation.window=(32, 32, 32)',
  '--config.evaluation.pictures=1',
  '--config.model.backbone.size=tiny',
  '--config.model.scales=(0, 1)',
  '--config.model.bank.scales=(1,)',
  '--config.model.bank.executor=capacity',
  '--config.model.bank.capacity_factor=4.0',  # C = n: drop-free, so that no mesh may differ
  '--config.text.num_layers=1',
  '--config.train.steps=5',
  '--config.train.batch_size=8',
  '--config.train.log_every=1',
  '--config.train.checkpoint_every=2',
  '--config.train.warmup_steps=1',
  '--config.train.learning_rate=5e-3',
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('meshes')
  run(folder, 1, 'input_pipeline.prepare', '--source=phantom', '--data_dir=data', '--spacing=12',
      '--brick=16', '--cases=3')  # fmt: skip
  return folder


def environment(folder, devices):
  return {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def run(folder, devices, module, *arguments, launcher=()):
  done = subprocess.run(
    [*launcher, sys.executable, '-m', module, *arguments],
    cwd=folder, env=environment(folder, devices), capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
  return done


def two_processes():
  return [sys.executable, str(ROOT / 'launch/local_processes.py'), '-n', '2', '--devices', '4',
          '--']  # fmt: skip


def train(folder, name, devices, *changes, launcher=()):
  return run(folder, devices, 'mome_jax.main', *SETTINGS, f'--workdir={name}', *changes,
             launcher=launcher)  # fmt: skip


def losses(folder, name):
  lines = (folder / name / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['loss'] for line in lines]


@pytest.fixture(scope='module')
def one(folder):
  train(folder, 'one', 1)
  return losses(folder, 'one')


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('experts', ['--config.mesh.expert=4']),
    ('fsdp', ['--config.mesh.expert=2', '--config.mesh.fsdp=true']),
    ('spatial', ['--config.mesh.expert=4', '--config.mesh.spatial=true']),
  ],
)
def test_eight_devices(folder, one, name, changes):
  train(folder, name, 8, *changes)
  np.testing.assert_allclose(losses(folder, name), one, rtol=1e-4)


def test_two_processes_of_four_devices(folder, one):
  train(folder, 'two', 4, '--config.mesh.expert=4', launcher=two_processes())
  np.testing.assert_allclose(losses(folder, 'two'), one, rtol=1e-4)
  read = lambda name: json.loads((folder / name / 'evaluation/summary.json').read_text())
  both = [read(name)['classes'] for name in ('one', 'two')]
  for cls in both[0]:
    assert both[0][cls]['n'] == both[1][cls]['n']
    assert both[0][cls]['dice'] == pytest.approx(both[1][cls]['dice'], abs=2e-3)


def test_two_preempted_processes_save_and_go_on(folder, one):
  """SIGTERM to one of them: both save the same step and exit 75, and the launcher restarts them."""
  process = subprocess.Popen(
    [*two_processes(), sys.executable, '-m', 'mome_jax.main', *SETTINGS, '--workdir=again',
     '--config.mesh.expert=4'],
    cwd=folder, env=environment(folder, 4), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  log = folder / 'again' / 'metrics.jsonl'
  deadline = time.monotonic() + 900
  while not (log.exists() and log.read_text()):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
  os.kill(int(children[1]), signal.SIGTERM)
  _, err = process.communicate(timeout=900)
  assert process.returncode == 0, err[-3000:]
  assert 'preempted, restart 1 of 3' in err
  np.testing.assert_allclose(losses(folder, 'again'), one, rtol=1e-4)


def test_a_checkpoint_goes_on_with_another_mesh(folder, one):
  train(folder, 'moved', 8, '--config.mesh.expert=4')
  (folder / 'moved/checkpoints/5').rename(folder / 'last')  # back to the one before
  done = train(folder, 'moved', 1)
  assert 'resuming moved at step 4' in done.stdout
  np.testing.assert_allclose(losses(folder, 'moved'), one, rtol=1e-4)
