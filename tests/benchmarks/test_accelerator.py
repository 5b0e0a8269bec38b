"""The accelerator command, in tiny sizes on the CPU: no minute there is lost to a typo."""

import json
import pathlib
import subprocess
import sys
import tarfile
import time
import types

import jax
import numpy as np
import pytest

from mome_jax.training import state
from tests.benchmarks.accelerator import __main__ as accelerator
from tests.benchmarks.accelerator import (
  networks,
  numerics,
  pack,
  process_group,
  pytorch,
  runner,
  training,
  training_run,
)


def run(folder, parts):
  command = ['--tiny', '--here', '--repeats=1', f'--output={folder}']
  code = accelerator.main([*command, '--parts', *parts])
  failed = [path.read_text()[-3000:] for path in folder.glob('*.errors.txt')]
  assert not failed, failed
  assert code == 0
  for part in parts:
    title, _, header, _, *lines = (folder / f'{part}.md').read_text().splitlines()
    assert 'sizes tiny' in title and header.startswith('| case |')
    assert len(lines) == len(rows(folder, part)) > 0


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  folder = tmp_path_factory.mktemp('accelerator')
  half = folder / 'fresh_model' / 'config.json'  # of a part that was stopped
  half.parent.mkdir()
  half.write_text('{"model": {}}')
  run(folder, 'de')
  return folder


def rows(output, part):
  return json.loads((output / f'{part}.json').read_text())['rows']


def test_a_scan_and_the_feed(output):
  one, three = rows(output, 'd').values()
  assert one['windows'] == three['windows'] > 1
  assert one['seconds'] > 0 and one['bytes_to_device'] > 0
  assert {row['patches_per_second'] > 0 for row in rows(output, 'e').values()} == {True}


@pytest.mark.slow
def test_steps_and_numerics(tmp_path):
  run(tmp_path, 'abcgh')
  compared = rows(tmp_path, 'a')['unet float32']
  assert compared['forward'] < 1e-5 and compared['passed'] == 'yes'
  assert 1e-4 < rows(tmp_path, 'a')['unet bfloat16']['forward'] < 6e-2
  steps = rows(tmp_path, 'b')
  assert steps['step, unet 16^3 x 1']['patches'] == pytest.approx(
    1e3 / steps['step, unet 16^3 x 1']['ms']
  )
  assert rows(tmp_path, 'h')['unet 16^3 x 1, eager']['ms'] > 0
  kernels = steps['kernels, unet 16^3 x 1']['kernels']
  assert len(kernels) > 3 and kernels[0][1] >= kernels[1][1] > 0
  mixture = rows(tmp_path, 'c')
  assert mixture['mixture']['tflop'] > mixture['finest layer alone']['tflop']


def test_what_is_there_is_not_measured_again_and_what_failed_is(tmp_path):
  measured = []

  def case(name, fails=False):
    def measure():
      measured.append(name)
      if fails and measured.count(name) == 1:
        raise ValueError('out of\nmemory')
      return {'ms': 1.0}

    return runner.Case(name, measure)

  part = runner.Part('Title;', {'ms': 'ms'}, lambda settings: [case('x'), case('y', True)])
  settings = runner.Settings(tmp_path, tiny=True)
  assert not runner.run('p', part, settings, limit=60)
  assert '| y | ValueError: out of memory |' in (tmp_path / 'p.md').read_text()
  assert not runner.run('p', part, settings, limit=-1)  # no time is left
  assert runner.run('p', part, settings, limit=60)
  assert measured == ['x', 'y', 'y']
  assert '| y | 1 |' in (tmp_path / 'p.md').read_text()
  with pytest.raises(SystemExit, match='was measured on .* choose another --output'):
    runner.run('p', part, runner.Settings(tmp_path), limit=60)


def test_a_part_leaves_the_device_to_what_it_starts(tmp_path):
  """A TPU serves one process; of a GPU's memory the first one takes three quarters."""
  program = (
    'import pathlib, sys; from jax._src import xla_bridge; '
    'from tests.benchmarks.accelerator import __main__ as accelerator, runner; '
    'look = lambda: {"taken": xla_bridge.backends_are_initialized()}; '
    'case = runner.Case("x", look); '
    'accelerator.PARTS["f"] = runner.Part("Title;", {}, lambda settings: [case]); '
    'accelerator.main(["--tiny", "--here", "--parts", "f", "--output", sys.argv[1]])'
  )
  subprocess.run([sys.executable, '-c', program, str(tmp_path)], check=True, cwd=pack.ROOT)
  assert rows(tmp_path, 'f') == {'x': {'taken': False}}


def test_a_machine_without_an_accelerator_is_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(runner, 'devices', lambda: ('cpu', 'cpu', 1))
  with pytest.raises(SystemExit):
    accelerator.main([f'--output={tmp_path}', '--here', '--parts', 'c'])
  assert 'jax sees no accelerator' in capsys.readouterr().err


def test_the_device_begins_with_the_parameters_of_the_cpu(monkeypatch):
  """Its own fresh ones are others: the generator gives other numbers on another kind of device."""
  begun = []

  class Step:
    def __init__(self, config, device):
      begun.append(device)
      weights = jax.device_put(np.full(3, len(begun), np.float32), device)
      self.state = state.TrainState(np.int32(0), {'model': {'w': weights}}, {}, {})
      self.state = jax.device_put(self.state, device)
      self.inputs = ({'image': np.ones(3, np.float32)}, {})

    def __call__(self):
      params = jax.tree.map(lambda w: 2 * w, self.state.params)
      self.state = self.state.replace(params=params)

  model = types.SimpleNamespace(
    apply=lambda variables, image, _: (variables['params']['w'] * image,)
  )
  monkeypatch.setattr(networks, 'TrainStep', Step)
  monkeypatch.setattr(numerics, 'build_model', lambda config: model)
  row = numerics._compare('unet', 'float32', tiny=True)
  assert len(begun) == 2
  assert row['forward'] == row['gradient'] == row['step'] == 0


def test_pytorch_on_a_cpu_is_no_peer_of_an_accelerator():
  with pytest.raises(RuntimeError, match='PyTorch sees no GPU'):
    pytorch._backbone('unet', 'eager', side=96, batch=1, tiny=False, repeats=1)


@pytest.mark.parametrize(
  ('kind', 'tera'),
  [
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H100 PCIe', 756),
    ('NVIDIA H100 NVL', 835),
    ('NVIDIA H200', 989),
    ('NVIDIA H200 NVL', 835),
    ('Tesla V100-SXM2-16GB', 125),
    ('Tesla V100-PCIE-16GB', 112),
    ('NVIDIA A100-SXM4-40GB', 312),
    ('NVIDIA L4', 121),
    ('TPU v5 lite', 197),
    ('TPU v5', 459),
    ('TPU v6 lite', 918),
  ],
)
def test_the_peak_of_a_device(kind, tera):
  assert networks.peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize(
  'kind', ['NVIDIA L40S', 'NVIDIA A10G', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'cpu']
)
def test_a_device_that_is_called_alike_has_no_peak_of_another(kind):
  assert networks.peak_flops(kind) is None


@pytest.mark.parametrize('ends', [[0, -11], [1, 0], [0, 0]])
def test_every_part_must_end_well(ends, tmp_path, monkeypatch):
  """The last part too that its process was killed in; no option's value is lost on the way."""
  commands = []

  def run_process(command, limit):
    commands.append(command)
    return ends[len(commands) - 1]

  monkeypatch.setattr(process_group, 'run', run_process)
  monkeypatch.chdir(tmp_path)
  code = accelerator.main(['--output', 'a', '--parts', 'b', 'c', '--tiny'])
  assert code == (0 if ends == [0, 0] else 1)
  given = [accelerator.make_parser().parse_args(command[3:]) for command in commands]
  assert [(args.output.name, args.parts, args.here) for args in given] == [
    ('a', ['b'], True),
    ('a', ['c'], True),
  ]


def test_nothing_is_left_of_a_part_that_takes_too_long(tmp_path):
  """Neither what it has started, though that ignores SIGTERM."""
  pid = tmp_path / 'pid'
  deaf = (
    'import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
    f'pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)'
  )
  part = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {deaf!r}])'
  with pytest.raises(subprocess.TimeoutExpired):
    process_group.run([sys.executable, '-c', part], limit=3, grace=0.5)
  end = time.monotonic() + 10  # whoever takes over orphans has to see that it is dead
  while _runs(int(pid.read_text())):
    assert time.monotonic() < end
    time.sleep(0.05)
  assert process_group.run([sys.executable, '-c', 'raise SystemExit(3)'], limit=60) == 3


def _runs(pid):
  status = pathlib.Path(f'/proc/{pid}/status')
  return status.exists() and 'State:\tZ' not in status.read_text()


def test_minutes_that_do_not_fit_into_a_part_are_refused(tmp_path, capsys):
  with pytest.raises(SystemExit):
    accelerator.main([f'--output={tmp_path}', '--parts', 'f', '--minutes=6.5'])
  assert 'a part has 5.8' in capsys.readouterr().err


def test_kernels_of_a_gpu_are_told_from_what_the_host_does():
  name = lambda kind, args, **of: {'ph': 'M', 'name': kind, 'args': {'name': args}, **of}
  events = [
    name('process_name', '/device:GPU:0', pid=1),
    name('thread_name', 'Stream #1(Compute)', pid=1, tid=2),
    name('process_name', '/host:CPU', pid=3),
    name('thread_name', 'python', pid=3, tid=4),
    {'ph': 'X', 'name': 'dgrad', 'pid': 1, 'tid': 2, 'dur': 1500},
    {'ph': 'X', 'name': 'dgrad', 'pid': 1, 'tid': 2, 'dur': 500},
    {'ph': 'X', 'name': 'main', 'pid': 3, 'tid': 4, 'dur': 9000},
  ]
  assert training.kernel_times(events) == {'dgrad': 2.0}


def test_a_model_in_pieces_is_whole_again(tmp_path):
  (tmp_path / 'model').mkdir()
  content = bytes(range(256)) * 1000
  (tmp_path / 'model' / 'params').write_bytes(content)
  pieces = training_run.split(tmp_path / 'model', tmp_path / 'pieces', size=100_000)
  assert len(pieces) == 3 and max(piece.stat().st_size for piece in pieces) == 100_000
  whole = tmp_path / 'whole.tar'
  whole.write_bytes(b''.join(piece.read_bytes() for piece in sorted(pieces)))
  with tarfile.open(whole) as archive:
    assert archive.extractfile('model/params').read() == content


def test_packed_data_is_what_was_prepared(output, tmp_path):
  size = pack.pack_data(output / 'phantoms', ['phantom'], tmp_path, limit=40_000_000)
  with tarfile.open(tmp_path / 'data.tar') as archive:
    names = archive.getnames()
  assert size > 1000 and 'data/phantom/prepare.json' in names
  assert all(any(kind in name for name in names) for kind in ('bricks', 'volumes', 'index.npz'))
  with pytest.raises(SystemExit, match='prepare fewer cases'):
    pack.pack_data(output / 'phantoms', ['phantom'], tmp_path, limit=1000)
