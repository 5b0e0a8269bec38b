"""Scripts of launchers: linted, and the Slurm one against a make-believe Slurm."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
BIN = pathlib.Path(sys.executable).parent


def test_scripts_are_clean():
  shellcheck = shutil.which('shellcheck', path=f'{BIN}:{os.environ["PATH"]}')
  files = [*sorted(LAUNCH.glob('*.sh')), LAUNCH / 'slurm.sbatch']
  assert len(files) == 3
  done = subprocess.run([shellcheck, '--shell=bash', *files], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def submit(folder, code, *arguments, **environment):
  """Runs the batch script with a `srun` that ends so; its exit code, and what Slurm was asked."""
  for name, text in (
    ('srun', f'printf "%s\\n" "$@" >{folder}/srun.txt; exit {code}'),
    ('scontrol', f'echo "$*" >{folder}/scontrol.txt'),
  ):
    (folder / name).write_text(f'#!/bin/bash\n{text}\n')
    (folder / name).chmod(0o755)
  done = subprocess.run(
    ['bash', LAUNCH / 'slurm.sbatch', *arguments],
    env={'PATH': f'{folder}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '42', **environment},
    capture_output=True, text=True,
  )  # fmt: skip
  asked = folder / 'scontrol.txt'
  return done, asked.read_text().strip() if asked.exists() else None


def test_every_task_of_slurm_gets_the_arguments(tmp_path):
  done, asked = submit(tmp_path, 0, '--config=a b.py', '--workdir=/shared/run')
  assert done.returncode == 0 and asked is None
  words = (tmp_path / 'srun.txt').read_text().splitlines()
  at = words.index('-m')
  assert words[at:] == ['-m', 'mome_jax.main', '--distributed', '--config=a b.py',
                        '--workdir=/shared/run']  # fmt: skip
  # A first task that ends with 75 must not have the others killed, whose codes would count.
  assert not any(word.startswith('--kill-on-bad-exit') for word in words)


def test_slurm_requeues_what_saved(tmp_path):
  done, asked = submit(tmp_path, 75, '--config=x')
  assert done.returncode == 0 and asked == 'requeue 42'
  assert 'restart 1 of 50' in done.stdout


def test_slurm_requeues_only_so_often(tmp_path):
  done, asked = submit(tmp_path, 75, '--config=x', SLURM_RESTART_COUNT='3', RESTARTS='3')
  assert done.returncode == 75 and asked is None
  assert 'RESTARTS=N allows more' in done.stderr


@pytest.mark.parametrize('code', [1, 2, 137])
def test_slurm_does_not_requeue_failures(tmp_path, code):
  done, asked = submit(tmp_path, code, '--config=x')
  assert done.returncode == code and asked is None
