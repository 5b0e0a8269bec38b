"""Which devices a process takes, by what Slurm or a launcher says, and whether it has them."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from mome_jax.training import local_devices

ROOT = pathlib.Path(__file__).resolve().parents[3]


def slurm(task=0, *, tasks, per_node, local=0, node=0, nodes=1, **more):
  """What Slurm tells a task."""
  return {
    'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': str(tasks),
    'SLURM_PROCID': str(task), 'SLURM_LOCALID': str(local), 'SLURM_NODEID': str(node),
    'SLURM_STEP_NUM_NODES': str(nodes), 'SLURM_STEP_TASKS_PER_NODE': per_node, **more,
  }  # fmt: skip


EIGHT = {'SLURM_GPUS_ON_NODE': '8', 'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}


@pytest.mark.parametrize(
  ('environment', 'expected'),
  [
    # The template: one task a node, eight GPUs. JAX alone would take the first.
    (slurm(1, tasks=2, per_node='1(x2)', node=1, nodes=2, **EIGHT), [*range(8)]),
    # One task a GPU, all of which each task sees.
    (slurm(3, tasks=8, per_node='8', local=3, **EIGHT), [3]),
    # Two tasks share eight.
    (slurm(1, tasks=2, per_node='2', local=1, **EIGHT), [4, 5, 6, 7]),
    # Bound by --gpus-per-task: each sees its own, counted from 0, whatever its number is.
    (slurm(1, tasks=2, per_node='2', local=1, SLURM_GPUS_ON_NODE='8',
           CUDA_VISIBLE_DEVICES='0,1,2,3'), [0, 1, 2, 3]),
    (slurm(5, tasks=8, per_node='8', local=5, SLURM_GPUS_ON_NODE='8',
           CUDA_VISIBLE_DEVICES='0'), [0]),
    # AMD's variables, and none at all.
    (slurm(tasks=1, per_node='1', ROCR_VISIBLE_DEVICES='2,3'), [0, 1]),
    (slurm(tasks=1, per_node='1', SLURM_GPUS_ON_NODE='4'), [0, 1, 2, 3]),
    # No GPUs; no Slurm; Slurm without srun, where JAX does not look either.
    (slurm(tasks=1, per_node='1'), None),
    (EIGHT, None),
    ({'SLURM_JOB_ID': '7', **EIGHT}, None),
    # Nodes of different numbers of tasks.
    (slurm(5, tasks=6, per_node='1(x2),4', local=3, node=2, nodes=3, **EIGHT), [6, 7]),
    ({**slurm(1, tasks=4, per_node='', nodes=2, local=1, **EIGHT)}, [4, 5, 6, 7]),
  ],
)  # fmt: skip
def test_tasks_of_slurm_share_the_gpus_of_their_node(environment, expected):
  assert local_devices.of_slurm(environment) == expected


def test_tasks_that_cannot_share_are_refused():
  with pytest.raises(local_devices.DeviceError, match='3 tasks of Slurm cannot share 8 GPUs'):
    local_devices.of_slurm(slurm(tasks=3, per_node='3', **EIGHT))


def test_the_number_that_is_expected():
  assert local_devices.expected(None, {}) is None
  assert local_devices.expected([0, 1], {}) == 2
  assert local_devices.expected([0, 1], {'MOME_DEVICES': '4'}) == 4
  with pytest.raises(local_devices.DeviceError, match="MOME_DEVICES='four'"):
    local_devices.expected(None, {'MOME_DEVICES': 'four'})


def test_uneven_processes_are_refused_and_named():
  rows = [
    {'host': f'node{i}', 'platform': 'gpu', 'devices': n, 'expected': None}
    for i, n in enumerate([8, 8, 7])
  ]
  assert local_devices.describe(rows[:2])[1] == 'process 1 on node1: 8 gpu device(s)'
  with pytest.raises(local_devices.DeviceError, match='process 2 on node2: 7 gpu'):
    local_devices.describe(rows)


START = """
import sys
from mome_jax.errors import command
from mome_jax.training import multihost
import jax
@command
def main(argv=None):
  try:
    multihost.initialize()
  finally:
    print('takes', jax.config._read('jax_cuda_visible_devices'), flush=True)
sys.exit(main())
"""


def start(environment):
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    port = listener.getsockname()[1]
  common = {
    **{k: v for k, v in os.environ.items() if not re.match('SLURM|MOME|JAX|CUDA', k)},
    'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'JAX_COORDINATOR_PORT': str(port),
  }  # fmt: skip
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', START], env=common | one, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for one in environment
  ]  # fmt: skip
  outputs = [process.communicate(timeout=200) for process in processes]
  return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def test_two_tasks_of_slurm_find_each_other_and_tell_their_devices():
  more = {'JAX_NUM_CPU_DEVICES': '4', 'MOME_DEVICES': '4'}
  tasks = [slurm(i, tasks=2, per_node='1(x2)', node=i, nodes=2, **more) for i in (0, 1)]
  (code, out, err), (other, quiet, _) = start(tasks)
  assert (code, other) == (0, 0), err
  host = socket.gethostname()
  assert f'process 0 on {host}: 4 cpu device(s), 4 expected\n' in out
  assert f'process 1 on {host}: 4 cpu device(s), 4 expected\n' in out
  assert 'expected' not in quiet


def test_a_node_without_its_gpus_is_an_error():
  [(code, out, err)] = start([slurm(tasks=1, per_node='1', **EIGHT)])
  assert 'takes 0,1,2,3,4,5,6,7' in out  # what JAX was told, before it looked
  assert code == 1
  assert 'sees 1 cpu device(s), expected 8 of a GPU; is the JAX of this environment' in err
