"""What a training survives: faults tried on real processes, and what each costs.

PYTHONPATH=. python tests/benchmarks/faults.py --work=DIR [--fault=NAME ...] [--kills=20]

A small demo is prepared and trained once without faults. Then it is trained again for each fault,
which comes when the run is where it hurts; the same command goes on afterwards. Survived is what
ends with the metrics of the undisturbed run, the same files, and nothing left over. Lost are steps
that were logged and had to be done again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, EVERY = 20, 5
SETTINGS = (
  '--config=demo', '--config.data_dir=data', '--config.data.spacing=(12.0, 12.0, 12.0)',
  '--config.data.patch=(16, 16, 16)', '--config.evaluation.window=(32, 32, 32)',
  '--config.evaluation.pictures=1', '--config.model.backbone.size=tiny',
  '--config.model.scales=(0, 1)', '--config.text.num_layers=1', '--config.init.text=',
  '--config.train.negatives=0',
  f'--config.train.steps={STEPS}', '--config.train.batch_size=4', '--config.train.log_every=1',
  f'--config.train.checkpoint_every={EVERY}', '--config.train.warmup_steps=1',
  '--config.train.learning_rate=1e-3', '--config.validation.every=10',
  '--config.validation.patches=4',
)  # fmt: skip
LOST = re.compile('lost another one|heartbeat|rendezvous|ended with', re.IGNORECASE)
_PATIENCE = 600.0  # seconds that a run may take


@dataclasses.dataclass
class Run:
  """A training in `folder/name`, of one process or of several under launch/local_processes.py."""

  folder: pathlib.Path
  name: str
  processes: int = 2

  @property
  def workdir(self) -> pathlib.Path:
    """Of the training."""
    return self.folder / self.name

  def start(self, limit: int | None = None) -> subprocess.Popen:
    """Starts it, in a session of its own."""
    launcher = [
      sys.executable, ROOT / 'launch/local_processes.py', '-n', str(self.processes),
      '--devices', '1', '--grace', '20', '--restarts', '3', '--',
    ]  # fmt: skip
    words = [sys.executable, '-m', 'mome_jax.main', *SETTINGS, f'--workdir={self.name}']
    environment = {
      **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
      'MOME_CACHE': str(self.folder / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }  # fmt: skip
    output = (self.folder / f'{self.name}.log').open('a')
    return subprocess.Popen(
      [*(launcher if self.processes > 1 else ()), *words],
      cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True,
    )  # fmt: skip

  def finish(self) -> int:
    """Runs the command until it ends; its exit code."""
    return self.start().wait(_PATIENCE)

  def output(self) -> str:
    """All that was printed."""
    return (self.folder / f'{self.name}.log').read_text()

  def rows(self) -> list[dict]:
    """What was logged of each step."""
    file = self.workdir / 'metrics.jsonl'
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]

  def resumed(self) -> list[int]:
    """Steps that starts went on from."""
    return [int(step) for step in re.findall(r'resuming \S+ at step (\d+)', self.output())]


def prepare(folder: pathlib.Path) -> None:
  """Prepares the phantoms of all runs in `folder`."""
  if not (folder / 'data/phantom/prepare.json').exists():
    subprocess.run(
      [sys.executable, '-m', 'input_pipeline.prepare', '--source=phantom', '--data_dir=data',
       '--spacing=12', '--brick=16', '--cases=3'],
      cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip


# ---------------------------------------------------------------------------- when it hurts
Moment = Callable[[Run], bool]


def steps_done(count: int) -> Moment:
  """After so many steps."""
  return lambda run: len(run.rows()) >= count


def in_a_save(run: Run) -> bool:
  """While the checkpoint of step 10 is written."""
  return any((run.workdir / 'checkpoints').glob('10.*tmp*'))


def in_validation(run: Run) -> bool:
  """After the step before a validation, whose row is written after it."""
  return len(run.rows()) >= 9


def in_evaluation(run: Run) -> bool:
  """After the last step, once its checkpoint is there, before there are scores."""
  done = (run.workdir / f'checkpoints/{STEPS}/ema').exists()
  return done and not (run.workdir / 'evaluation/summary.json').exists()


def wait_for(run: Run, process: subprocess.Popen, moment: Moment) -> None:
  """Waits until a run is where a fault is to come."""
  deadline = time.monotonic() + _PATIENCE
  while not moment(run):
    if process.poll() is not None or time.monotonic() > deadline:
      raise RuntimeError(f'{run.name}: the moment of the fault never came\n{run.output()[-2000:]}')
    time.sleep(0.005)


def children(process: subprocess.Popen) -> list[int]:
  """Ids of the processes that a launcher started."""
  text = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text()
  return [int(word) for word in text.split()]


# ---------------------------------------------------------------------------- faults
def kill_one(moment: Moment, which: int, number: int = signal.SIGKILL) -> Callable[[Run], None]:
  """One of two processes gets a signal; the other one must end by itself, or go on with it."""

  def fault(run: Run) -> None:
    process = run.start()
    wait_for(run, process, moment)
    os.kill(children(process)[which], number)
    code = process.wait(_PATIENCE)
    if number == signal.SIGKILL:
      assert code, f'{run.name}: ended with 0 although a process was killed'
      assert LOST.search(run.output()), run.output()[-2000:]

  return fault


def kill_all(run: Run) -> None:
  """Power that goes off: all processes are gone at once, in a save."""
  process = run.start()
  wait_for(run, process, in_a_save)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait(_PATIENCE)


def full_disk(run: Run) -> None:
  """The file system fills up after the first checkpoint, and is freed after the run ended."""
  run.workdir.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(run.workdir)]
  subprocess.run(mount, check=True)
  process = run.start()
  wait_for(run, process, lambda run: (run.workdir / 'checkpoints/5').exists())
  filler = run.workdir / 'filler'
  with filler.open('ab', buffering=0) as out:
    try:
      while True:
        out.write(b'x' * 4096)
    except OSError:
      pass
  code = process.wait(_PATIENCE)
  assert code == 1, code
  assert 'is complete' in run.output() or 'cannot be written' in run.output()
  filler.unlink()


def random_kills(count: int) -> Callable[[Run], None]:
  """kill -9 at random times, each after the run has got somewhere."""

  def fault(run: Run) -> None:
    rng = random.Random(0)
    for _ in range(count):
      process = run.start()
      begun = time.monotonic()
      wait = rng.uniform(1, 25)
      while process.poll() is None and time.monotonic() - begun < wait:
        time.sleep(0.01)
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait(_PATIENCE)

  return fault


FAULTS: dict[str, tuple[str, int, Callable[[Run], None]]] = {
  'save': ('kill -9 of one of two processes in a save', 2, kill_one(in_a_save, 1)),
  'save_lead': ('kill -9 of the first of two processes in a save', 2, kill_one(in_a_save, 0)),
  'power': ('all processes gone at once in a save', 2, kill_all),
  'validation': ('kill -9 of one of two in a validation', 2, kill_one(in_validation, 1)),
  'evaluation': ('kill -9 of one of two in the evaluation', 2, kill_one(in_evaluation, 1)),
  'term': ('SIGTERM to one of two processes', 2, kill_one(steps_done(8), 1, signal.SIGTERM)),
  'stalled': ('one of two processes stops (SIGSTOP)', 2,
              kill_one(steps_done(8), 1, signal.SIGSTOP)),
  'stalled_lead': ('the first of two processes stops', 2,
                   kill_one(steps_done(8), 0, signal.SIGSTOP)),
  'full': ('full disk in a save', 1, full_disk),
  'random': ('random kills of one process', 1, random_kills(20)),
}  # fmt: skip


# ---------------------------------------------------------------------------- afterwards
def files(workdir: pathlib.Path) -> set[str]:
  """What a run leaves, but for the random parts of the names of TensorBoard and TensorStore."""
  names = {str(p.relative_to(workdir)) for p in workdir.rglob('*') if p.is_file()}
  return {re.sub(r'events\.out.*|/d/\w+$', '', name) for name in names}


def compare(run: Run, sound: Run) -> list[str]:
  """What differs from the undisturbed run."""
  problems = []
  rows, expected = run.rows(), sound.rows()
  if [row['step'] for row in rows] != [row['step'] for row in expected]:
    problems.append('other steps in metrics.jsonl')
  else:
    for key in ('loss', 'validation/loss', 'validation/dice'):
      got, want = ([row[key] for row in part if key in row] for part in (rows, expected))
      if len(got) != len(want) or not np.allclose(got, want, rtol=1e-5, atol=1e-7):
        problems.append(f'another {key}')
  scores = [
    json.loads((one.workdir / 'evaluation/summary.json').read_text())['mean_dice']
    for one in (run, sound)
  ]
  if not np.isclose(*scores, atol=1e-6):
    problems.append(f'mean Dice {scores[0]} instead of {scores[1]}')
  left = {name for name in files(run.workdir) if 'damaged/' not in name}
  if left != files(sound.workdir):
    problems.append(f'other files: {sorted(left ^ files(sound.workdir))[:5]}')
  return problems


def try_fault(name: str, folder: pathlib.Path, sound: Run) -> dict:
  """Tries one fault; name, what it is, whether it was survived, steps lost, seconds, problems."""
  words, processes, fault = FAULTS[name]
  run = Run(folder, name, processes)
  start = time.monotonic()
  try:
    fault(run)
    logged = max((row['step'] for row in run.rows()), default=0)
    before = len(run.resumed())
    code = run.finish()
    problems = [] if code == 0 else [f'exit code {code}: {run.output()[-300:]}']
    problems += compare(run, sound) if code == 0 else []
    later = run.resumed()[before:] or run.resumed()
    lost = max(logged - later[0], 0) if later else logged
  finally:
    subprocess.run(['umount', '-l', run.workdir], capture_output=True)
  return {
    'fault': words, 'survived': not problems, 'lost': lost, 'starts': len(run.resumed()) + 1,
    'seconds': round(time.monotonic() - start), 'problems': problems,
  }  # fmt: skip


def undisturbed(folder: pathlib.Path, processes: int) -> Run:
  """The run that the others are compared with, trained where it is not there yet."""
  run = Run(folder, f'sound_{processes}', processes)
  if not (run.workdir / 'evaluation/summary.json').exists():
    code = run.finish()
    assert code == 0, run.output()[-3000:]
  return run


def main() -> int:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--work', type=pathlib.Path, required=True, help='an empty folder')
  parser.add_argument('--fault', nargs='+', choices=FAULTS, default=list(FAULTS))
  parser.add_argument('--kills', type=int, default=20, help='of the random ones')
  arguments = parser.parse_args()
  folder = arguments.work.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  words, processes, _ = FAULTS['random']
  FAULTS['random'] = f'{arguments.kills} {words}', processes, random_kills(arguments.kills)
  prepare(folder)
  print('| fault | survived | steps lost | starts | s |\n|:--|:--|--:|--:|--:|', flush=True)
  failed = 0
  for name in arguments.fault:
    row = try_fault(name, folder, undisturbed(folder, FAULTS[name][1]))
    failed += not row['survived']
    told = 'yes' if row['survived'] else f'**no**: {"; ".join(row["problems"])}'
    print(f'| {row["fault"]} | {told} | {row["lost"]} | {row["starts"]} | {row["seconds"]} |',
          flush=True)  # fmt: skip
  return min(failed, 1)


if __name__ == '__main__':
  sys.exit(main())
