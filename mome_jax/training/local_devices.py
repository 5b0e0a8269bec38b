"""The devices of one process of a run: which it is to take, and whether it got them."""

import os
import re
import socket
from collections.abc import Mapping

import jax

from mome_jax.errors import UserError

EXPECTED = 'MOME_DEVICES'  # environment: how many devices each process must have; launchers set it
# Whose value, separated by commas, names the GPUs that a process may see.
_VISIBLE = ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')
# By these JAX knows Slurm, too.
_SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')


class DeviceError(UserError):
  """A process has not the devices that it should have; the message names host and numbers."""


def of_slurm(environment: Mapping[str, str] = os.environ) -> list[int] | None:
  """The GPUs of this Slurm task, as positions among those that it sees; None where it has none.

  JAX would take one GPU a task, the one with the number of the task on its node. Here the tasks of
  a node share its GPUs evenly, and a task that Slurm has bound to its own takes all that it sees.

  Args:
    environment: SLURM_*, and the variables by which drivers are told what a process may see.

  Raises:
    DeviceError: if the tasks of this node cannot share its GPUs evenly.
  """
  if not all(name in environment for name in _SLURM):
    return None
  visible = next((environment[name] for name in _VISIBLE if environment.get(name)), None)
  on_node = int(environment.get('SLURM_GPUS_ON_NODE') or 0)
  seen = len(visible.split(',')) if visible else on_node
  if not seen:
    return None
  tasks = _tasks_of_node(environment)
  if seen * tasks == on_node or seen == 1:  # bound to its own
    return list(range(seen))
  if seen % tasks:
    raise DeviceError(
      f'{socket.gethostname()}: {tasks} tasks of Slurm cannot share {seen} GPUs evenly; choose '
      '--ntasks-per-node=1, or one task a GPU'
    )
  share = seen // tasks
  first = int(environment['SLURM_LOCALID']) * share
  return list(range(first, first + share))


def _tasks_of_node(environment: Mapping[str, str]) -> int:
  """Tasks of the job on this node: '2(x3),1' lists those of four nodes."""
  names = 'SLURM_STEP_TASKS_PER_NODE', 'SLURM_TASKS_PER_NODE'
  text = next((environment[name] for name in names if environment.get(name)), '')
  counts: list[int] = []
  for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
    counts += [int(count)] * int(times or 1)
  node = int(environment.get('SLURM_NODEID') or 0)
  if node < len(counts):
    return counts[node]
  nodes = int(environment.get('SLURM_STEP_NUM_NODES') or environment.get('SLURM_NNODES') or 1)
  return max(int(environment['SLURM_NTASKS']) // nodes, 1)


def expected(local: list[int] | None, environment: Mapping[str, str] = os.environ) -> int | None:
  """How many devices this process must have, None where nobody said.

  Args:
    local: the GPUs that it is to take, from `of_slurm`.
    environment: MOME_DEVICES comes first.

  Raises:
    DeviceError: if MOME_DEVICES is no number.
  """
  text = environment.get(EXPECTED)
  if text is None:
    return None if local is None else len(local)
  if not text.isdecimal():
    raise DeviceError(f'{EXPECTED}={text!r}: expected a whole number')
  return int(text)


def seen(local: list[int] | None, number: int | None) -> dict[str, str | int | None]:
  """What this process has, to be gathered from all: host, platform, devices, expected.

  Args:
    local: the GPUs that it is to take, from `of_slurm`.
    number: that it must have, from `expected`.

  Raises:
    DeviceError: if it has fewer, or none of its GPUs. It need not wait for the others then.
  """
  devices = jax.local_devices()
  row: dict[str, str | int | None] = {
    'host': socket.gethostname(),
    'platform': devices[0].platform,
    'devices': len(devices),
    'expected': number,
  }
  without_gpus = local is not None and devices[0].platform == 'cpu'
  if without_gpus or (number is not None and len(devices) < number):
    raise DeviceError(
      f'process {jax.process_index()} on {row["host"]} sees {len(devices)} {row["platform"]} '
      f'device(s), expected {number}'
      + (' of a GPU; is the JAX of this environment built for it?' if without_gpus else '')
      + '; see to the drivers of that host, or leave it out'
    )
  return row


def describe(rows: list[dict]) -> list[str]:
  """A line for each process of a run.

  Args:
    rows: of `seen`, in the order of the processes.

  Raises:
    DeviceError: if the processes have different numbers of devices.
  """
  counts = {row['devices'] for row in rows}
  lines = [
    f'process {number} on {row["host"]}: {row["devices"]} {row["platform"]} device(s)'
    + (f', {row["expected"]} expected' if row['expected'] is not None else '')
    for number, row in enumerate(rows)
  ]
  if len(counts) > 1:
    most = max(counts)
    fewer = [line for line, row in zip(lines, rows, strict=True) if row['devices'] < most]
    raise DeviceError(
      f'the processes have between {min(counts)} and {most} devices, and each needs as many as the '
      f'others; fewest: {"; ".join(fewer[:3])}'
    )
  return lines
