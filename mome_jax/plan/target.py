"""What to plan for: which device, how much of its memory a step may take, which network."""

import dataclasses
import os

from input_pipeline import control_groups
from mome_jax.errors import UserError
from mome_jax.plan import trial
from mome_jax.plan.fit import Budget, gib

_PROGRAM = 2**30  # bytes: Python, JAX and TensorFlow themselves
_DEVICE = 0.9  # share of a device's memory: prefetched batches and fragments take the rest
_CPU_HOURS = 8.0
# Share of the time that steps get; reading, logging and checkpoints take the rest. On a CPU the
# batches are made on the same cores.
_KEPT, _KEPT_CPU = 0.9, 0.75


class TargetError(UserError):
  """Options that contradict each other; the message says which."""


@dataclasses.dataclass(frozen=True)
class Target:
  """What a plan is for.

  Attributes:
    machine: whose compiler is asked.
    memory: bytes there are on a device.
    budget: what of it a step may take, and the time of the training.
    cache_mb: for decoded bricks.
    size: of the backbone.
    why_size: one line.
    here: whether the training is to run on this machine, so that its steps can be timed.
    words: what it is, for people.
  """

  machine: trial.Machine
  memory: int
  budget: Budget
  cache_mb: int
  size: str
  why_size: str
  here: bool
  words: str

  @property
  def on_cpu(self) -> bool:
    """Whether the training is to run on a CPU."""
    return self.here and self.machine.platform == 'cpu'


def find_target(
  topology: str | None, memory: int | None, hours: float | None, size: str | None
) -> Target:
  """The target that the options describe.

  Without `topology` it is this machine; but where that has no accelerator, and a memory is given
  without a time, it is another one's accelerator of that memory, of which this machine's compiler
  can only say what the CPU would need.

  Args:
    topology: of TPUs, as `compile_ahead.compile_config` takes it; 'here' is this machine.
    memory: bytes of a device.
    hours: of the training.
    size: of the backbone.

  Raises:
    TargetError: if hours are given for chips that are not here.
    TopologyError: if the topology is unknown, or its compiler is not installed.
  """
  named = topology == trial.HERE
  topology = None if named else topology
  if topology and hours is not None:
    raise TargetError(
      '--hours: how fast a step is on chips that are not here cannot be known; leave out --hours, '
      'or plan on the machine itself without --topology'
    )
  machine = trial.find_machine(topology or trial.HERE)
  elsewhere = machine.platform == 'cpu' and memory is not None and hours is None and not named
  here = topology is None and not elsewhere
  on_cpu = here and machine.platform == 'cpu'
  total = memory if memory is not None else machine.memory
  cache_mb = min(1024, total // 2**23) if on_cpu else 1024
  left = total - _PROGRAM - cache_mb * 2**20 if on_cpu else _DEVICE * total
  hours = _CPU_HOURS if on_cpu and hours is None else hours
  why = (
    'given'
    if size
    else 'two CPU cores take 16 times as long for base'
    if on_cpu
    else ('the published network of the CLIP-Driven Universal Model')
  )
  return Target(
    machine=machine,
    memory=total,
    budget=Budget(left, hours and (_KEPT_CPU if on_cpu else _KEPT) * hours * 3600),
    cache_mb=int(cache_mb),
    size=size or ('small' if on_cpu else 'base'),
    why_size=why,
    here=here,
    words=_words(machine, here, total, topology),
  )


def _words(machine: trial.Machine, here: bool, memory: int, topology: str | None) -> str:
  if topology:
    return f'{machine.devices} x {machine.kind} ({topology}), {gib(memory)} each'
  if here and machine.platform == 'cpu':
    return f"this machine's {control_groups.usable_cpus()} CPU cores, {gib(memory)}"
  if here:
    return f'{machine.devices} x {machine.kind} of this machine, {gib(memory)} each'
  return f'an accelerator of {gib(memory)}, by the compiler for the CPU of this machine'


def busy() -> str:
  """A remark where other work slows down what is timed here; '' where there is none."""
  try:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1  # of all that runs on the machine
  except OSError:
    return ''
  if load < cores + 1:
    return ''
  return (
    f'this machine is busy (load {load:.0f} on {cores} cores): the time of a step is a guess from '
    'the time that its cores spent on it; --again when it is idle tells'
  )
