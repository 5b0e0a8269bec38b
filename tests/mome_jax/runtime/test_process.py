"""Memory that a command has freed, in processes of its own."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from mome_jax.finetune import run
from mome_jax.plan import trial
from mome_jax.runtime import process

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
RELEASE = """
import numpy as np
from mome_jax.runtime import process


def resident():
  return int(open('/proc/self/statm').read().split()[1])


process.prepare()
before = resident()
np.ones(10_000_000)
kept = resident() - before
process.release()
print(kept, resident() - before)
"""


def printed(program, **environment):
  """The numbers that a program prints."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')}
  kept.pop('GLIBC_TUNABLES', None)
  result = subprocess.run(
    [sys.executable, '-c', program],
    env=kept | {'MOME_CACHE': 'off', **environment},
    check=True,
    capture_output=True,
    text=True,
  )
  return [int(count) for count in result.stdout.split()]


def faults(**environment):
  """Pages of memory that each of three arrays of 80 MB, one after the other, had cleared for it."""
  return printed(PROGRAM, **environment)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='sets what glibc does')
def test_freed_memory_is_kept_unless_the_environment_says_something_else():
  first, *later = faults()
  assert first > 100 and max(later) < first / 20
  tunable = 'glibc.malloc.hugetlb=0:glibc.malloc.mmap_threshold=131072'
  for told in ({'MALLOC_TRIM_THRESHOLD_': '131072'}, {'GLIBC_TUNABLES': tunable}):
    assert min(faults(**told)[1:]) > first / 20
  assert max(faults(GLIBC_TUNABLES='glibc.malloc.hugetlb=0')[1:]) < first / 20


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='asks glibc')
def test_a_server_gives_back_what_it_has_freed():
  kept, left = printed(RELEASE)
  assert kept > 10_000 and left < kept / 20  # pages of 4 kB


class AskedForDevices(Exception):
  pass


@pytest.mark.parametrize('command', ['plan', 'finetune'])
def test_the_threads_of_devices_begin_after_it(command, tmp_path, monkeypatch):
  called = []

  def ask():
    assert called
    raise AskedForDevices

  monkeypatch.setattr(process, 'prepare', lambda: called.append('prepare'))
  monkeypatch.setattr(jax, 'devices', ask)
  monkeypatch.setattr(jax, 'device_count', ask)
  with pytest.raises(AskedForDevices):
    if command == 'plan':
      trial._measure(None, trial.Machine(trial.HERE, 'cpu', 'cpu', 1, 2**35), False)
    else:
      run._run(str(tmp_path), 'shipped', str(tmp_path / 'work'), None)
