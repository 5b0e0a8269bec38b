"""Runs on_mesh.py in a process with eight devices; the other tests keep one."""

import os
import pathlib
import subprocess
import sys

FILE = pathlib.Path(__file__).with_name('on_mesh.py')


def test_on_eight_devices():
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '--durations=5', '-p', 'no:cacheprovider', str(FILE)],
    cwd=FILE.parents[3],
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
