"""The real program trains alike on one device, on a mesh, and as several processes."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
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
  '--config.init.text=',  # the encoder of the package has two layers
  '--config.text.num_layers=1',
  '--config.train.steps=30',
  '--config.train.batch_size=8',
  '--config.train.log_every=1',
  '--config.train.checkpoint_every=10',
  '--config.train.warmup_steps=1',
  '--config.train.learning_rate=1e-3',
  '--config.validation.every=5',
  '--config.validation.patches=16',
]

EXPERTS = ('--config.mesh.expert=4',)
# Two validations, of which each takes seconds, by two processes of a device each.
VALIDATED = (
  '--config.train.steps=10',
  '--config.train.checkpoint_every=3',
  '--config.validation.patches=128',
)

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


def two_processes(devices=4):
  # The grace outlasts JAX's heartbeat: a process that lost the other one must end by itself.
  return [sys.executable, str(ROOT / 'launch/local_processes.py'), '-n', '2',
          f'--devices={devices}', '--grace=300', '--']  # fmt: skip


def train(folder, name, devices, *changes, launcher=()):
  return run(folder, devices, 'mome_jax.main', *SETTINGS, f'--workdir={name}', *changes,
             launcher=launcher)  # fmt: skip


def validations(folder, name):
  """Losses and Dice of each validation, by step."""
  lines = (folder / name / 'metrics.jsonl').read_text().splitlines()
  keys = 'validation/loss', 'validation/dice'
  rows = [json.loads(line) for line in lines]
  return {row['step']: [row[key] for key in keys] for row in rows if keys[0] in row}


def losses(folder, name):
  lines = (folder / name / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['loss'] for line in lines]


@pytest.fixture(scope='module')
def one(folder):
  train(folder, 'one', 1)
  return losses(folder, 'one')


@pytest.fixture(scope='module')
def experts(folder):
  train(folder, 'experts', 8, *EXPERTS)
  return losses(folder, 'experts')


@pytest.fixture(scope='module')
def two(folder):
  train(folder, 'two', 4, *EXPERTS, launcher=two_processes())
  return losses(folder, 'two')


def assert_alike(got, expected):
  """The first five losses: later on rounding has grown through the steps."""
  np.testing.assert_allclose(got[:5], expected[:5], rtol=1e-4)


def test_eight_devices_that_share_the_experts(one, experts):
  assert_alike(experts, one)


def test_validation_is_the_same_with_any_devices_and_processes(folder, one, experts, two):
  """The first one: later on rounding has grown through the steps."""
  rows = [validations(folder, name) for name in ('one', 'experts', 'two')]
  assert all(list(row) == [5, 10, 15, 20, 25, 30] for row in rows)
  for row in rows[1:]:
    np.testing.assert_allclose(row[5], rows[0][5], rtol=1e-3)


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('fsdp', ['--config.mesh.expert=2', '--config.mesh.fsdp=true']),
    ('spatial', ['--config.mesh.expert=4', '--config.mesh.spatial=true']),
  ],
)
def test_eight_devices(folder, one, name, changes):
  train(folder, name, 8, *changes)
  assert_alike(losses(folder, name), one)


def test_two_processes_of_four_devices(folder, one, two):
  """Training as on one device; and each evaluates half of the scans, for the scores of all."""
  assert_alike(two, one)
  read = lambda: json.loads((folder / 'two/evaluation/summary.json').read_text())['classes']
  shared = read()
  run(folder, 1, 'mome_jax.main', '--mode=evaluate', '--workdir=two')
  for name, alone in read().items():
    assert shared[name]['n'] == alone['n']
    assert shared[name]['dice'] == pytest.approx(alone['dice'], abs=1e-3)


def test_a_checkpoint_goes_on_with_another_mesh(folder, experts):
  shutil.copytree(folder / 'experts', folder / 'moved')
  shutil.rmtree(folder / 'moved/checkpoints/30')  # back to the one before
  done = train(folder, 'moved', 1)
  assert 'resuming moved at step 20' in done.stdout
  moved = losses(folder, 'moved')
  assert len(moved) == 30
  assert_alike(moved[20:], experts[20:])


def start_two(folder, name, is_ready, *changes, devices=4):
  """A run of two processes, once `is_ready` of the text of its log or of what it printed.

  Returns:
    The launcher, and the ids of the two.
  """
  printed = folder / f'{name}.out'
  with printed.open('w') as out:
    process = subprocess.Popen(
      [*two_processes(devices), sys.executable, '-m', 'mome_jax.main', *SETTINGS,
       f'--workdir={name}', *changes],
      cwd=folder, env=environment(folder, devices) | {'PYTHONUNBUFFERED': '1'}, stdout=out,
      stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
  log = folder / name / 'metrics.jsonl'
  deadline = time.monotonic() + 900
  while not is_ready(log.read_text() if log.exists() else '', printed.read_text()):
    assert process.poll() is None, process.communicate()[1][-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.02)
  children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
  return process, [int(child) for child in children]


def test_two_preempted_processes_save_and_go_on(folder, two):
  """SIGTERM to one of them: both save the same step and exit 75, and the launcher restarts them."""
  process, children = start_two(folder, 'again', lambda log, _: log.count('\n') >= 3, *EXPERTS)
  os.kill(children[1], signal.SIGTERM)
  _, err = process.communicate(timeout=900)
  assert process.returncode == 0, err[-3000:]
  assert 'preempted, restart 1 of 3' in err
  np.testing.assert_allclose(losses(folder, 'again'), two, rtol=1e-5)


def test_a_killed_process_ends_the_other_one(folder, two):
  """kill -9 of one: the other ends with a message, and the same command resumes."""
  process, children = start_two(folder, 'bereft', lambda log, _: log.count('\n') >= 13, *EXPERTS)
  os.kill(children[1], signal.SIGKILL)
  _, err = process.communicate(timeout=900)
  assert process.returncode == 128 + signal.SIGKILL
  assert 'process 1 of 2 ended with -9' in err
  # It notices by itself: a broken connection, or a collective that others never joined.
  assert 'process 0 of 2 ended with' in err
  assert re.search('lost another one|heartbeat|rendezvous', err, re.IGNORECASE), err[-6000:]
  train(folder, 'bereft', 4, *EXPERTS, launcher=two_processes())
  np.testing.assert_allclose(losses(folder, 'bereft'), two, rtol=1e-5)


@pytest.fixture(scope='module')
def validated(folder):
  train(folder, 'validated', 1, *VALIDATED, launcher=two_processes(1))
  return losses(folder, 'validated'), validations(folder, 'validated')


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGKILL])
def test_ended_while_both_validate(folder, validated, sent):
  """SIGTERM saves, is restarted and validates then; kill -9 goes on from the last save."""
  name = f'ended_by_{sent.name}'
  is_validating = lambda _, printed: 'compiled the predict step' in printed
  process, children = start_two(folder, name, is_validating, *VALIDATED, devices=1)
  rows = (folder / name / 'metrics.jsonl').read_text().splitlines()
  os.kill(children[1], sent)
  assert len(rows) == 4  # step 5 is logged with its validation
  _, err = process.communicate(timeout=900)
  if sent == signal.SIGTERM:
    assert process.returncode == 0, err[-3000:]
    assert 'preempted, restart 1 of 3' in err
  else:
    assert process.returncode == 128 + signal.SIGKILL, err[-3000:]
    assert not validations(folder, name)
    train(folder, name, 1, *VALIDATED, launcher=two_processes(1))
  whole, measured = validated
  assert list(measured) == [5, 10]
  np.testing.assert_allclose(losses(folder, name), whole, rtol=1e-5)
  resumed = validations(folder, name)
  assert resumed.keys() == measured.keys()
  np.testing.assert_allclose(list(resumed.values()), list(measured.values()), rtol=1e-4)
  assert (folder / name / 'evaluation/table.md').read_text() == (
    folder / 'validated/evaluation/table.md'
  ).read_text()
