"""How many processors a job or container may use."""

import os

import pytest

from input_pipeline import control_groups


@pytest.fixture(autouse=True)
def eight(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
  ('line', 'files', 'usable'),
  [
    ('0::/', {'cpu.max': '200000 100000'}, 2),  # docker run --cpus=2
    ('0::/', {'cpu.max': '150000 100000'}, 2),
    ('0::/', {'cpu.max': '10000 100000'}, 1),
    ('0::/', {'cpu.max': 'max 100000'}, 8),
    ('0::/', {'cpu.max': '1600000 100000'}, 8),
    ('0::/pod/app', {'pod/cpu.max': '300000 100000', 'pod/app/cpu.max': 'max 100000'}, 3),
    ('0::/', {}, 8),
    (
      '4:cpu,cpuacct:/docker/f00',  # seen from inside
      {'cpu/cpu.cfs_quota_us': '400000', 'cpu/cpu.cfs_period_us': '100000'},
      4,
    ),
    (
      '4:cpuacct,cpu:/slurm/job_7',
      {'cpu/slurm/job_7/cpu.cfs_quota_us': '-1', 'cpu/slurm/job_7/cpu.cfs_period_us': '100000'},
      8,
    ),
    ('4:cpuset:/job', {'cpu/cpu.cfs_quota_us': '100000', 'cpu/cpu.cfs_period_us': '100000'}, 8),
  ],
)
def test_a_quota_of_time_counts_as_processors(line, files, usable, tmp_path):
  """More workers than that make nothing faster: Linux stops all of them when it is used up."""
  (tmp_path / 'proc/self').mkdir(parents=True)
  (tmp_path / 'proc/self/cgroup').write_text(f'{line}\n')
  for name, content in files.items():
    path = tmp_path / 'sys/fs/cgroup' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{content}\n')
  assert control_groups.usable_cpus(tmp_path) == usable


def test_where_nothing_tells_all_count(tmp_path):
  assert control_groups.usable_cpus(tmp_path) == 8
