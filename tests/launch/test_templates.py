"""Launch templates: linted, and the pod script's commands as it would run them."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
BIN = pathlib.Path(sys.executable).parent


def pod(*arguments, **environment):
  return subprocess.run(
    ['bash', str(LAUNCH / 'tpu_pod.sh'), *arguments],
    env={'PATH': os.environ['PATH'], 'NAME': 'mome', 'ZONE': 'z', **environment},
    capture_output=True,
    text=True,
  )


def test_scripts_are_clean():
  shellcheck = shutil.which('shellcheck', path=f'{BIN}:{os.environ["PATH"]}')
  files = [LAUNCH / 'tpu_pod.sh', LAUNCH / 'slurm.sbatch']
  done = subprocess.run([shellcheck, '--shell=bash', *files], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_yaml_is_clean():
  done = subprocess.run(
    [sys.executable, '-m', 'yamllint', '--strict', '-d',
     '{extends: default, rules: {line-length: {max: 100}}}', LAUNCH / 'gke_jobset.yaml'],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  ('verb', 'expected'),
  [
    ('create', 'tpu-vm create mome --zone=z --accelerator-type=v5litepod-16'),
    ('setup', 'tpu-vm ssh mome --zone=z --worker=all'),
    ('logs', 'tpu-vm ssh mome --zone=z --worker=all'),
    ('stop', '--worker=all'),
    ('delete', 'tpu-vm delete mome --zone=z'),
  ],
)
def test_dry_run(verb, expected):
  done = pod(verb, DRY_RUN='1')
  assert done.returncode == 0, done.stderr
  assert expected in done.stdout


def test_run_passes_its_arguments_to_every_worker():
  done = pod('run', '--config=a b.py', '--workdir=gs://x', DRY_RUN='1')
  assert '--worker=all' in done.stdout
  assert 'mome_jax.main' in done.stdout
  assert '--distributed' in done.stdout
  assert 'workdir=gs://x' in done.stdout


def fake_gcloud(folder, ssh):
  """A `gcloud` whose pod has 4 workers and whose ssh runs the given shell line."""
  script = folder / 'gcloud'
  script.write_text(
    f'#!/bin/bash\ncase "$*" in *describe*) echo 4;; *worker-is-here*) {ssh};; *) exit 75;; esac\n'
  )
  script.chmod(0o755)
  return f'{folder}:{os.environ["PATH"]}'


def test_a_missing_worker_is_an_error(tmp_path):
  path = fake_gcloud(tmp_path, 'for i in 1 2 3; do echo worker-is-here; done')
  done = pod('run', '--config=x', PATH=path)
  assert done.returncode == 1
  assert '3 of 4 workers of mome answer' in done.stderr


def test_a_preempted_run_is_started_again(tmp_path):
  path = fake_gcloud(tmp_path, 'for i in 1 2 3 4; do echo worker-is-here; done')
  done = pod('run', '--config=x', PATH=path, RESTARTS='2')
  assert done.returncode == 75
  assert done.stderr.count('preempted, starting again') == 3


def test_a_wrong_verb_says_what_is_known():
  done = pod('destroy')
  assert done.returncode == 2
  assert 'create|setup|run|logs|status|stop|delete' in done.stderr
