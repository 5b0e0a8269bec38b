"""Memory that a command has freed, in processes of its own."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from mome_jax.runtime import process

process.prepare()
faults = []
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(10_000_000)
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def faults(**environment):
  """Pages of memory that each of three arrays of 80 MB, one after the other, had cleared for it."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')}
  kept.pop('GLIBC_TUNABLES', None)
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=kept | {'MOME_CACHE': 'off', **environment},
    check=True,
    capture_output=True,
    text=True,
  )
  return [int(count) for count in result.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='sets what glibc does')
def test_freed_memory_is_kept_unless_the_environment_says_something_else():
  first, *later = faults()
  assert first > 100 and max(later) < first / 20
  assert min(faults(MALLOC_TRIM_THRESHOLD_='131072')[1:]) > first / 20
