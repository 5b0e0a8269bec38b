"""What one training step needs: bytes by the compiler, and seconds where its device is here."""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import re
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import control_groups
from mome_jax import __version__
from mome_jax.errors import UserError

_STEPS = 3  # that are timed, after one that warms up
_SHARED = 1.25  # wall time of a step over its share of the cores' time, on an idle CPU at most
_VERSION = 3  # of what is kept
HERE = 'here'
# Of control groups, old and new: limit, what is used, what of that is a cache.
_FILES = (
  ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
  ('memory.max', 'memory.current', 'inactive_file'),
)
_RUNNABLE = 0.6  # share of a CPU's free memory up to which a step is run


class TrialError(UserError):
  """The compiler ended without an answer; the message says what it was given."""


@dataclasses.dataclass(frozen=True)
class Machine:
  """The devices to plan for.

  Attributes:
    topology: as `compile_ahead.compile_config` takes it.
    platform: 'cpu', 'gpu' or 'tpu'.
    kind: name of a device.
    devices: how many there are.
    memory: bytes of one of them; of the CPU, what is free now.
  """

  topology: str
  platform: str
  kind: str
  devices: int
  memory: int


@dataclasses.dataclass(frozen=True)
class Trial:
  """A training step of one config.

  Attributes:
    peak: bytes of one device, by the compiler: arguments, results and temporaries; None: it gave up
      and named no more than there is.
    flops: of the step on all devices; products and convolutions.
    parameters: of the network and its text encoder.
    compile_seconds: it took, wherever it was compiled.
    measured: bytes by which the process, or the device, grew while steps ran; None: not run, or
      the system does not tell.
    seconds: of a step, on the CPU as on an idle one; None: not run.
    compiler: and its version.
    refused: whether the compiler gave up for the memory, or the device ran out of it.
  """

  peak: int | None
  flops: float
  parameters: int
  compile_seconds: float
  measured: int | None
  seconds: float | None
  compiler: str
  refused: bool = False


def find_machine(topology: str) -> Machine:
  """The devices of a topology.

  Raises:
    TopologyError: if it is unknown, or its compiler is not installed.
  """
  return _apart(_describe, topology)


def run(
  config: ConfigDict,
  machine: Machine,
  *,
  execute: bool,
  folder: pathlib.Path | None,
  again: bool = False,
) -> Trial:
  """Compiles the training step of a config, in a process of its own.

  Args:
    config: the whole config.
    machine: of `find_machine`.
    execute: also run a few steps on random numbers, where the memory that is free now allows.
    folder: where answers are kept; the same question is then answered from there. None: nowhere.
      What was refused is not kept: other programs may have held the memory.
    again: ask anew, and keep the new answer.

  Raises:
    TopologyError: if the topology's compiler is not installed.
    TrialError: if the compiler was killed, as the system does where memory runs out.
  """
  file = folder and folder / f'{_key(config, machine, execute)}.json'
  if file is not None and not again:
    with contextlib.suppress(OSError, ValueError, TypeError):
      return Trial(**json.loads(file.read_text(encoding='utf-8')))
  trial = _apart(_measure, config, machine, execute)
  if file is not None and not trial.refused:
    with contextlib.suppress(OSError):  # what cannot be kept is only slower next time
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(json.dumps(dataclasses.asdict(trial)), encoding='utf-8')
  return trial


def _key(config: ConfigDict, machine: Machine, execute: bool) -> str:
  """What an answer depends on, and no more: the same network and batch are asked about once.

  Machines that share a folder of answers may differ in devices, and in the processors to be used.
  """
  steps = {k: v for k, v in config.train.items() if k not in ('steps', 'warmup_steps', 'ema_decay')}
  asked = {
    'version': _VERSION,
    'package': __version__,
    'packages': [importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax')],
    'effort': os.environ.get('JAX_EXEC_TIME_OPTIMIZATION_EFFORT'),
    'topology': machine.topology,
    'devices': [machine.platform, machine.kind, machine.devices],
    'cpus': control_groups.usable_cpus() if machine.platform == 'cpu' else None,
    'execute': execute,
    'classes': len(config.classes),
    'windows': len(config.data.windows),
    'patch': list(config.data.patch),
    'mesh': config.mesh.to_dict(),
    'model': config.model.to_dict(),
    'text': config.text.to_dict(),
    'train': ConfigDict(steps).to_dict(),
  }
  text = json.dumps(asked, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def _apart(function, *arguments) -> Any:
  """Calls a function in a fresh process: which devices JAX sees is decided once in each."""
  context = multiprocessing.get_context('spawn')
  try:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
      return pool.submit(function, *arguments).result()
  except BrokenProcessPool as error:
    raise TrialError(
      'the compiler was killed, most likely as this machine ran out of memory; free some, or pass '
      'a smaller --memory'
    ) from error


def _describe(topology: str) -> Machine:
  from mome_jax.training import compile_ahead

  devices, platform = compile_ahead.find_devices(topology)
  gib = compile_ahead.hbm_gib(topology)
  if gib is not None:
    memory = gib * 2**30
  elif platform == 'cpu':
    memory = free_memory() // len(devices)
  else:
    memory = _statistics(devices[0]).get('bytes_limit', 0)
  return Machine(topology, platform, devices[0].device_kind, len(devices), memory)


def _measure(config: ConfigDict, machine: Machine, execute: bool) -> Trial:
  from mome_jax.runtime import jax_errors, process
  from mome_jax.training import compile_ahead, sharding, text_start
  from mome_jax.training.flops import count_flops

  process.prepare()
  devices, platform = compile_ahead.find_devices(machine.topology)
  text_start.complete(config)
  mesh = sharding.make_mesh(config.mesh, devices)
  start = time.perf_counter()
  traced, params = compile_ahead.trace_train_step(config, mesh)
  measured = step_seconds = None
  refused = False
  try:
    compiled = compile_ahead.compile_traced(traced, platform)
    peak: int | None = compile_ahead.memory(compiled)['peak']
  except compile_ahead.TooLargeError as error:  # the search goes on with a smaller one
    # What it names may be of a part: below the memory that says nothing of the whole.
    peak = error.needs if 0 < machine.memory < error.needs else None
    execute, refused = False, True
  seconds = time.perf_counter() - start
  if execute and peak is not None and peak < _room(devices[0]):
    try:
      measured, step_seconds = _execute(compiled, devices[0])
    except jax_errors.KINDS as error:
      if not jax_errors.is_out_of_memory(error):
        raise
      refused = True  # libraries take what the compiler does not know
  return Trial(
    peak=peak,
    flops=count_flops(traced.jaxpr, platform),
    parameters=sum(leaf.size for leaf in _leaves(params)),
    compile_seconds=round(seconds, 1),
    measured=measured,
    seconds=step_seconds,
    compiler=compile_ahead.compiler(platform),
    refused=refused,
  )


def _room(device: Any) -> float:
  """Bytes up to which a step is run: the system kills one that a CPU cannot hold."""
  if device.platform == 'cpu':
    return _RUNNABLE * free_memory()
  return _statistics(device).get('bytes_limit', math.inf)


def _statistics(device: Any) -> dict[str, int]:
  """What an accelerator tells of its memory; some allocators tell nothing."""
  return device.memory_stats() or {}


def _execute(compiled: Any, device: Any) -> tuple[int | None, float]:
  """Bytes that running takes beside what was there before, and seconds of the quickest step.

  The compiler knows the arrays of the program; what its libraries take for themselves, and what the
  allocator keeps, is in the measured bytes alone.
  """
  import jax

  before = _mark(device)
  # Whatever it learns from, a step takes as long and as much: all zeros and ones.
  (shapes, *inputs), _ = compiled.args_info
  (places, *input_places), _ = compiled.input_shardings

  def place(value):
    return lambda leaf, where: jax.device_put(
      np.full(leaf.shape, value, leaf.dtype), where, may_alias=False
    )

  train_state = jax.tree.map(place(0), shapes, places)
  batch, prompts = jax.tree.map(place(1), inputs, input_places)
  times = []
  for step in range(1 + _STEPS):
    if step == 1:
      _mark(device)  # the arrays that the state was copied from are gone
    start, used = time.perf_counter(), time.process_time()
    train_state, metrics = compiled(train_state, batch, prompts)
    jax.block_until_ready((train_state, metrics))
    seconds, used = time.perf_counter() - start, time.process_time() - used
    # Other work on the machine delays a step, and costs it hardly more time of the cores.
    idle = _SHARED * used / control_groups.usable_cpus() if device.platform == 'cpu' else seconds
    times.append(min(seconds, idle))
  return (_peak(device) - before) or None, min(times[1:])


def _leaves(tree: Any) -> list:
  import jax

  return jax.tree.leaves(tree)


def _mark(device: Any) -> int:
  """Bytes in use now; from here on the peak counts."""
  if device.platform != 'cpu':
    return _statistics(device).get('bytes_in_use', 0)
  # What was freed goes back to the system, so that growing shows.
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')  # the peak begins anew
  return _status('VmRSS')


def _peak(device: Any) -> int:
  """The most bytes in use since `_mark`."""
  if device.platform != 'cpu':
    return _statistics(device).get('peak_bytes_in_use', 0)
  return _status('VmHWM')


def _status(field: str) -> int:
  """Bytes of a field of Linux's account of this process; 0 on other systems."""
  return _kib(pathlib.Path('/proc/self/status'), field)


def free_memory() -> int:
  """Bytes that programs could still take here: of the machine, or of their job or container.

  Half of the machine's memory where nobody tells.
  """
  free = _kib(pathlib.Path('/proc/meminfo'), 'MemAvailable')
  free = free or os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
  return max(min([free, *_left_to_groups()]), 0)


def _left_to_groups(root: pathlib.Path = pathlib.Path('/')) -> list[int]:
  """Bytes that each limit leaves which Slurm or a container sets for this process."""
  left = []
  for place, is_new in control_groups.folders('memory', root):
    most, used, idle = _FILES[is_new]
    with contextlib.suppress(OSError, ValueError):  # 'max' is no limit
      taken = control_groups.number(place / used)
      taken -= control_groups.number(place / 'memory.stat', f'{idle} ')
      left.append(control_groups.number(place / most) - taken)
  return left


def _kib(file: pathlib.Path, field: str) -> int:
  """Bytes of a field that one of Linux's own files has in kB, 0 where there is none."""
  with contextlib.suppress(OSError):
    match = re.search(rf'^{field}:\s+(\d+) kB', file.read_text(encoding='utf-8'), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
  return 0
