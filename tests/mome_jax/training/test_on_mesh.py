"""Runs the on_mesh.py files in a process with eight devices; the other tests keep one."""

import os
import pathlib
import subprocess
import sys

import compiled

HERE = pathlib.Path(__file__).parent
FILES = [HERE / 'on_mesh.py', HERE.parent / 'moe' / 'on_mesh.py']


def test_on_eight_devices():
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '--durations=5', '-p', 'no:cacheprovider', *FILES],
    cwd=HERE.parents[2],
    env={**os.environ, **compiled.SOON, 'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
