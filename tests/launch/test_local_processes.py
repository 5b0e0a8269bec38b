"""The launcher with real processes: joining, failing, being preempted."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Every process adds up over all others, each step, until the run is asked to end.
WORKER = """
import os, signal, sys, time
from mome_jax.training import multihost
multihost.initialize()
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils

mode, folder = sys.argv[1:]
me = jax.process_index()
rows = multihost.gather_rows([{'host': me, 'text': 'x' * (5 + me)}])
assert [row['host'] for row in rows] == [0, 1] and len(rows[1]['text']) == 6
first = not os.path.exists(os.path.join(folder, f'done_{me}'))
step = 0
if me == 1 and first and mode == 'early':  # while it compiles, say
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(1)
with multihost.device_errors(), multihost.Preemption() as preemption:
  while step < 200:
    total = multihost_utils.process_allgather(jnp.ones(())).sum()
    assert total == 2
    step += 1
    if step == 3 and me == 1 and first and mode == 'dies':
      os.kill(os.getpid(), signal.SIGKILL)
    if step == 3 and me == 1 and first and mode == 'preempted':
      os.kill(os.getpid(), signal.SIGTERM)
    if step == 5 and mode == 'short' or not first:
      break
    if preemption.requested():
      open(os.path.join(folder, f'done_{me}'), 'w').write(str(step))
      jax.distributed.shutdown()
      sys.exit(multihost.PREEMPTED)
    time.sleep(0.05)
"""


# A run that is scored, by the program's own handling of what ends it; no step was run before.
SCORING = """
import os, signal, sys, time, types
from mome_jax import checkpoint, evaluate, main
from mome_jax.errors import UserError
from mome_jax.training import multihost
multihost.initialize()
import jax
from jax.experimental import multihost_utils

mode, folder = sys.argv[1:]
me = jax.process_index()
done = os.path.join(folder, f'done_{me}')

def score(config, workdir, asked):
  multihost_utils.process_allgather(jax.numpy.ones(()))
  if mode in ('full', 'broken'):
    if mode == 'full' and me == 0:
      raise UserError('disk full')
    if mode == 'broken' and me == 1:
      raise OSError('disk broken')
    multihost_utils.process_allgather(jax.numpy.ones(()))
  elif not os.path.exists(done):
    open(done, 'w').close()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

checkpoint.for_evaluation, evaluate.evaluate = (lambda *_: None), score
main.config_flag.asked = lambda values: ()
values = dict(distributed=False, mode='evaluate', config=None, workdir=folder)
sys.exit(main._run(types.SimpleNamespace(**values)))
"""


def launch(*command, grace=60):
  return subprocess.Popen(
    [sys.executable, 'launch/local_processes.py', '-n', '2', '--devices', '1',
     f'--grace={grace}', '--', *command],
    cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def work(mode, folder, worker=WORKER, **options):
  process = launch(sys.executable, '-c', worker, mode, str(folder), **options)
  out, err = process.communicate(timeout=200)
  return process.returncode, err


def test_processes_find_each_other(tmp_path):
  code, err = work('short', tmp_path)
  assert code == 0, err


def test_a_dead_worker_ends_the_others_with_a_message(tmp_path):
  code, err = work('dies', tmp_path)
  assert code == 128 + signal.SIGKILL
  assert 'process 1 of 2 ended with -9' in err
  assert 'error: process 0 of 2 lost another one' in err or 'heartbeat' in err.lower()


def test_a_signal_counts_before_the_errors_that_it_causes():
  script = (
    'import os, signal, sys, time\n'
    'if os.environ["JAX_PROCESS_ID"] == "0": sys.exit(1)\n'
    'time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)'
  )
  process = launch(sys.executable, '-c', script)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 128 + signal.SIGKILL
  assert 'process 0 of 2 ended with 1' in err and 'process 1 of 2 ended with -9' in err


@pytest.mark.parametrize('mode', ['preempted', 'early'])
def test_preempted_processes_agree_on_a_step_and_are_started_again(tmp_path, mode):
  code, err = work(mode, tmp_path)
  assert code == 0, err
  assert 'preempted, restart 1 of 3' in err
  steps = [(tmp_path / f'done_{n}').read_text() for n in (0, 1)]
  assert steps[0] == steps[1]


def test_processes_that_are_preempted_while_they_score_are_started_again(tmp_path):
  code, err = work('preempted', tmp_path, SCORING)
  assert code == 0, err
  assert 'preempted: asked to end; the same command resumes' in err
  assert 'preempted, restart 1 of 3' in err


@pytest.mark.parametrize(
  ('mode', 'message'), [('full', 'error: disk full'), ('broken', 'OSError: disk broken')]
)
def test_what_one_process_alone_meets_ends_all_at_once(tmp_path, mode, message):
  start = time.monotonic()
  code, err = work(mode, tmp_path, SCORING, grace=1)
  assert code in (1, 128 + signal.SIGABRT)  # JAX ends the others: they have lost the coordinator
  assert message in err
  assert time.monotonic() - start < 100  # JAX's own goodbye takes 300 s


def test_a_signal_to_the_launcher_reaches_all_and_restarts_none():
  script = 'import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); time.sleep(60)'
  process = launch(sys.executable, '-c', script)
  time.sleep(2)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75
  assert 'restart' not in err


def test_a_worker_that_ignores_the_end_is_killed():
  script = (
    'import os, sys, time; sys.exit(3) if os.environ["JAX_PROCESS_ID"] == "1" else time.sleep(99)'
  )
  process = launch(sys.executable, '-c', script, grace=0.5)
  process.communicate(timeout=30)
  assert process.returncode == 3


def test_mistakes_take_one_line():
  process = launch('no-such-program')
  assert process.communicate(timeout=60)[1].splitlines() == [
    'error: no-such-program: cannot be run (No such file or directory); correct the command'
  ]
  assert process.returncode == 1
  for line in (['-n', '0', '--', 'true'], ['-n', 'two', '--', 'true'], ['--', 'true']):
    done = subprocess.run(
      [sys.executable, 'launch/local_processes.py', *line], cwd=ROOT, capture_output=True, text=True
    )
    (message,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert message.startswith('error: ') and '--help' in message
