"""Two runs in one workdir: the second is refused, whoever began the first."""

import subprocess
import sys

import pytest
from etils import epath

from input_pipeline.files import folder_lock
from mome_jax.checkpoint import CheckpointError
from mome_jax.training.sole_run import sole_run

HOLD = """
import sys
from etils import epath
from mome_jax.training.sole_run import sole_run
with sole_run(epath.Path(sys.argv[1])):
  print('in', flush=True)
  sys.stdin.read()
"""


def test_a_workdir_has_one_run_at_a_time(tmp_path):
  workdir = epath.Path(tmp_path / 'runs/a')
  other = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(workdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  assert other.stdout.readline() == b'in\n'
  refused = pytest.raises(CheckpointError, match=r'runs/a: another run is in it; wait for its end')
  with refused, sole_run(workdir):
    pass
  with sole_run(workdir.parent / 'b'):
    pass
  other.kill()  # whatever ends a run lets the next one in
  other.wait()
  with sole_run(workdir):
    pass
  assert list(workdir.iterdir()) == []


def test_a_bucket_cannot_be_locked():
  with folder_lock.sole('gs://bucket/run', AssertionError()):
    pass
