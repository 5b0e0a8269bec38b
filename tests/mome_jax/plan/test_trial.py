"""What a training step needs, asked of the real compiler: a tiny network, compiled once."""

import dataclasses
import math
import os
import types

import jax
import pytest

from input_pipeline import control_groups
from mome_jax.configs import demo
from mome_jax.plan import target, trial

GIB = 2**30

MACHINE = trial.Machine(trial.HERE, 'cpu', 'cpu', 1, 2**35)


def tiny(edge=32):
  config = demo.get_config()
  config.classes = ('liver', 'spleen')
  config.model.backbone.size = 'tiny'
  config.model.scales = (0, 1)  # two of four: it compiles in half the time
  config.data.patch = (edge, edge, edge)
  return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('answers')


@pytest.fixture(scope='module')
def answer(folder):
  return trial.run(tiny(), MACHINE, execute=True, folder=folder)


def test_a_step_is_compiled_and_run(answer):
  # Parameters, their average and two moments in float32 are the least it holds.
  assert answer.peak > 16 * answer.parameters
  assert answer.measured > 0
  assert 0 < answer.seconds < 60
  # Each convolution multiplies once forward and twice backward: more than that of the first layer.
  assert answer.flops > 3 * 2 * 27 * 2 * 4 * 32**3
  assert answer.compiler.startswith('jax ')


def test_it_is_asked_once(answer, folder, monkeypatch):
  def never(*arguments):
    raise AssertionError('asked again')

  monkeypatch.setattr(trial, '_apart', never)
  steps = tiny()
  steps.train.steps, steps.train.warmup_steps, steps.seed = 7, 1, 3  # of no consequence
  assert trial.run(steps, MACHINE, execute=True, folder=folder) == answer
  for other in (tiny(40), _with(tiny(), 'train.batch_size', 2), _with(tiny(), 'model.remat', True)):
    with pytest.raises(AssertionError, match='asked again'):
      trial.run(other, MACHINE, execute=True, folder=folder)
  with pytest.raises(AssertionError, match='asked again'):
    trial.run(tiny(), MACHINE, execute=True, folder=folder, again=True)


@pytest.mark.parametrize(
  'other', [{'platform': 'gpu'}, {'kind': 'H100'}, {'devices': 2}, {'topology': 'v5e:4'}]
)
def test_another_machine_is_asked_for_itself(other):
  key = trial._key(tiny(), MACHINE, True)
  assert trial._key(tiny(), dataclasses.replace(MACHINE, **other), True) != key
  assert trial._key(tiny(), dataclasses.replace(MACHINE, memory=1), True) == key


def test_other_processors_and_versions_are_asked_anew(monkeypatch):
  gpu = dataclasses.replace(MACHINE, platform='gpu')
  before = [trial._key(tiny(), machine, True) for machine in (MACHINE, gpu)]
  monkeypatch.setattr(control_groups, 'usable_cpus', lambda: 1000)
  now = [trial._key(tiny(), machine, True) for machine in (MACHINE, gpu)]
  assert now[0] != before[0] and now[1] == before[1]
  monkeypatch.setattr(trial, '__version__', '99')
  assert trial._key(tiny(), gpu, True) != now[1]


def _with(config, name, value):
  config.update_from_flattened_dict({name: value})
  return config


def test_a_damaged_answer_is_asked_for_again(folder, answer, monkeypatch):
  monkeypatch.setattr(trial, '_apart', lambda *arguments: answer)
  config = tiny(48)
  file = folder / f'{trial._key(config, MACHINE, True)}.json'
  file.write_text('{"peak": ')
  assert trial.run(config, MACHINE, execute=True, folder=folder) == answer
  assert trial.run(config, MACHINE, execute=True, folder=None) == answer


def test_this_machine():
  machine = trial.find_machine('cpu:2')
  assert (machine.platform, machine.devices) == ('cpu', 2)
  assert machine.memory == pytest.approx(trial.free_memory() / 2, rel=0.2)
  assert 0 < trial.free_memory() < math.inf


@pytest.mark.parametrize(
  ('line', 'files', 'left'),
  [
    ('4:memory:/slurm/job_7', {'memory/slurm/job_7': (8 * GIB, 3 * GIB, GIB)}, [6 * GIB]),
    ('4:memory:/slurm/job_7', {'memory/slurm': (8 * GIB, 0, 0)}, [8 * GIB]),
    ('4:memory:/docker/f00', {'memory': (4 * GIB, GIB, 0)}, [3 * GIB]),  # seen from inside
    ('0::/job/step', {'job': (6 * GIB, 4 * GIB, GIB), 'job/step': ('max', GIB, 0)}, [3 * GIB]),
    ('0::/', {'': (GIB, 2 * GIB, 0)}, [-GIB]),
    ('4:memory:/', {}, []),
    ('7:blkio:/job', {'memory/job': (GIB, 0, 0)}, []),
  ],
)
def test_what_a_job_or_container_may_take(line, files, left, tmp_path):
  """Slurm's --mem and docker's -m: planning for all of a node's memory, they end the training."""
  (tmp_path / 'proc/self').mkdir(parents=True)
  (tmp_path / 'proc/self/cgroup').write_text(f'3:cpu:/\n{line}\n')
  old = ':memory:' in line
  most, used = ('limit_in_bytes', 'usage_in_bytes') if old else ('max', 'current')
  for folder, (limit, taken, idle) in files.items():
    place = tmp_path / 'sys/fs/cgroup' / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / f'memory.{most}').write_text(f'{limit}\n')
    (place / f'memory.{used}').write_text(f'{taken}\n')
    total = 'total_' * old
    (place / 'memory.stat').write_text(f'{total}cache 1\n{total}inactive_file {idle}\n')
  assert trial._left_to_groups(tmp_path) == left


def test_the_memory_of_a_plan_is_that_of_its_job(monkeypatch):
  for left, free in (([10**6, 10**7], 10**6), ([-5], 0)):
    monkeypatch.setattr(trial, '_left_to_groups', lambda left=left: left)
    assert trial.free_memory() == free


@pytest.fixture
def on_gpu(monkeypatch):
  """on_gpu(statistics, ...) -> the answer of a GPU with that allocator, of a step of 100 bytes."""
  from mome_jax.runtime import compilation
  from mome_jax.training import compile_ahead, flops, sharding, text_start

  def ask(statistics, compile=lambda: None, execute=None, memory=99):
    gpu = types.SimpleNamespace(platform='gpu', memory_stats=lambda: statistics)
    traced = types.SimpleNamespace(jaxpr=None)
    compiles = types.SimpleNamespace(compile=compile)
    traced.lower, traced.fun_name = (lambda **_: compiles), 'train_step'
    monkeypatch.setattr(compile_ahead, 'find_devices', lambda topology: ([gpu], 'gpu'))
    monkeypatch.setattr(compile_ahead, 'trace_train_step', lambda config, mesh: (traced, {}))
    monkeypatch.setattr(compile_ahead, 'memory', lambda compiled: {'peak': 100})
    for module, name in ((compilation, 'use_cache'), (text_start, 'complete')):
      monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(sharding, 'make_mesh', lambda config, devices: None)
    monkeypatch.setattr(flops, 'count_flops', lambda jaxpr, platform: 1.0)
    runs = lambda compiled, device: (trial._peak(device) or None, 2.0)
    monkeypatch.setattr(trial, '_execute', execute or runs)
    return trial._measure(tiny(), dataclasses.replace(MACHINE, memory=memory), True)

  return ask


def test_a_step_that_an_accelerator_cannot_hold_is_not_run(on_gpu):
  assert on_gpu({'bytes_limit': 99}).seconds is None
  assert on_gpu({'bytes_limit': 200, 'peak_bytes_in_use': 90}).measured == 90


def test_an_allocator_that_tells_nothing_of_its_memory(on_gpu):
  """As of XLA_PYTHON_CLIENT_ALLOCATOR=platform."""
  answer = on_gpu(None)
  assert (answer.measured, answer.seconds) == (None, 2.0)


def raising(text):
  def fail(*_):
    raise jax.errors.JaxRuntimeError(text)

  return fail


@pytest.mark.parametrize(
  ('text', 'needs'),
  [
    # The words of the compilers of v5e and of a GPU.
    ('Ran out of memory on HBM, the total memory required for HLO temporaries (36.00G) exceeds '
     'available HBM (15.75G).', 36 * 2**30),
    ('XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.95G of '
     '15.48G hbm. Exceeded hbm capacity by 6.47G.', int(21.95 * 2**30)),
    ('Out of memory while trying to allocate 50 bytes.', None),  # of a part
    ('Out of memory.', None),
  ],
)  # fmt: skip
def test_a_step_that_the_compiler_gives_up_on_does_not_fit(on_gpu, text, needs):
  """It was a traceback, and the end of the plan."""
  answer = on_gpu({'bytes_limit': 200}, compile=raising(f'RESOURCE_EXHAUSTED: {text}'))
  assert (answer.peak, answer.seconds, answer.refused) == (needs, None, True)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    on_gpu({'bytes_limit': 200}, compile=raising('INTERNAL: (36.00G)'))


def test_a_step_that_runs_out_of_memory_does_not_fit(on_gpu):
  answer = on_gpu({'bytes_limit': 200}, execute=raising('RESOURCE_EXHAUSTED: 5 bytes'))
  assert (answer.peak, answer.seconds, answer.refused) == (100, None, True)


@pytest.mark.parametrize('text', ['Out of memory.', 'trying to allocate 17179869184 bytes.'])
def test_a_refusal_of_a_device_of_unknown_memory(on_gpu, text):
  """Its budget is --memory: whatever part the compiler names, it is not what the step needs."""
  compiled = on_gpu(None, compile=raising(f'RESOURCE_EXHAUSTED: {text}'), memory=0)
  assert (compiled.peak, compiled.refused) == (None, True)
  ran = on_gpu(None, execute=raising(f'RESOURCE_EXHAUSTED: {text}'), memory=0)
  assert (ran.peak, ran.seconds, ran.refused) == (100, None, True)


def test_a_refusal_is_not_kept(answer, tmp_path, monkeypatch):
  """Another program may have held the memory."""
  answers = [dataclasses.replace(answer, refused=True), answer]
  monkeypatch.setattr(trial, '_apart', lambda *arguments: answers.pop(0))
  ask = lambda: trial.run(tiny(), MACHINE, execute=True, folder=tmp_path)
  assert ask().refused
  assert ask() == ask() == answer


def test_other_work_is_told_of_where_the_whole_machine_is_busy(monkeypatch):
  """The load is that of all processors, however few of them a job may use."""
  monkeypatch.setattr(control_groups, 'usable_cpus', lambda: 2)
  monkeypatch.setattr(os, 'cpu_count', lambda: 64)
  monkeypatch.setattr(os, 'getloadavg', lambda: (30.0, 30.0, 30.0))
  assert target.busy() == ''
  monkeypatch.setattr(os, 'cpu_count', lambda: 16)
  assert 'load 30 on 16 cores' in target.busy()
