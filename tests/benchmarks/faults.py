"""What a training survives: faults tried on real processes, and what each costs.

PYTHONPATH=. python tests/benchmarks/faults.py --work=DIR [--fault=NAME ...]

A small demo is prepared and trained once without faults. Then it is trained again for each fault,
which comes when the run is where it hurts; the same command goes on afterwards. Survived is what
ends with the metrics of the undisturbed run, the same files, and nothing left over. Lost are steps
that were logged and had to be done again.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault('EPATH_USE_TF', '0')  # of what is looked at from here; before etils is there

from tests.benchmarks import fault_runs  # noqa: E402
from tests.benchmarks.fault_runs import (  # noqa: E402
  EVERY,
  SECOND,
  STEPS,
  Moment,
  Run,
  saved_and_on,
  steps_done,
  wait_for,
)
from tests.helpers import bucket, bucket_gate  # noqa: E402

LOST = re.compile('lost another one|heartbeat|rendezvous|ended with', re.IGNORECASE)
_DAY = 24 * 3600.0


# ---------------------------------------------------------------------------- faults
def kill_one(moment: Moment, which: int, number: int = signal.SIGKILL) -> Callable[[Run], None]:
  """One of two processes gets a signal; the other one must end by itself, or go on with it."""

  def fault(run: Run) -> None:
    process = run.start()
    wait_for(run, process, moment)
    os.kill(fault_runs.children(process)[which], number)
    code = process.wait(fault_runs.PATIENCE)
    if number == signal.SIGKILL:
      assert code, f'{run.name}: ended with 0 although a process was killed'
      assert LOST.search(run.output()), run.output()[-2000:]

  return fault


def kill_all(moment: Moment) -> Callable[[Run], None]:
  """All processes are gone at once."""

  def fault(run: Run) -> None:
    process = run.start()
    wait_for(run, process, moment)
    fault_runs.kill(process)

  return fault


def full_disk(run: Run) -> None:
  """The file system fills up after the first checkpoint, and is freed after the run ended."""
  run.workdir.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(run.workdir)]
  subprocess.run(mount, check=True)
  process = run.start()
  wait_for(run, process, lambda run: run.saved(EVERY))
  filler = run.workdir / 'filler'
  with open(filler, 'ab', buffering=0) as out, contextlib.suppress(OSError):
    while True:
      out.write(b'x' * 4096)
  _must_refuse(run, process)
  filler.unlink()


def full_bucket(run: Run) -> None:
  """The bucket takes nothing after the first checkpoint, and does again after the run ended."""
  process = run.start()
  wait_for(run, process, lambda run: run.saved(EVERY))
  assert run.gate is not None
  run.gate.refuses = True
  try:
    _must_refuse(run, process)
  finally:
    run.gate.refuses = False


def _must_refuse(run: Run, process: subprocess.Popen) -> None:
  """The run ends with the one line that says what could not be written."""
  code = process.wait(fault_runs.PATIENCE)
  last = run.output().rstrip().splitlines()[-1]
  assert code == 1, f'exit code {code}: {last}'
  assert re.match('error: .*(is complete|there is none yet|cannot be written)', last), last


def clock_skew(run: Run) -> None:
  """All is killed, and what it left was written by clocks that are up to two days off."""
  kill_all(saved_and_on)(run)
  rng = random.Random(0)
  for path in sorted(pathlib.Path(run.workdir).rglob('*')):
    if path.name == '_CHECKPOINT_METADATA':
      shifted = lambda match: f'{match[1]}{int(match[2]) + int(rng.uniform(-2, 2) * _DAY * 1e9)}'
      path.write_text(re.sub(r'(_timestamp_nsecs": )(\d+)', shifted, path.read_text()))
    then = time.time() + rng.uniform(-2, 2) * _DAY
    os.utime(path, (then, then))


def damaged_checkpoint(run: Run) -> None:
  """All is killed, and a bit flips in the newest checkpoint."""
  kill_all(saved_and_on)(run)
  fault_runs.flip(fault_runs.largest(pathlib.Path(run.workdir, f'checkpoints/{SECOND}').rglob('*')))


def damaged_records(run: Run) -> None:
  """All is killed, and a bit flips in the training records, which a copy brings back."""
  kill_all(steps_done(EVERY + 1))(run)
  shard = fault_runs.largest((run.folder / 'data/phantom/bricks').rglob('*'))
  sound = fault_runs.flip(shard)
  try:
    code = run.finish()
  finally:
    shard.write_bytes(sound)
  last = run.output().rstrip().splitlines()[-1]
  assert code == 1 and re.match('error: data/phantom/bricks.*damaged', last), (code, last)


def random_kills(count: int) -> Callable[[Run], None]:
  """kill -9 at random times: a third before the first step, the others some steps later."""

  def fault(run: Run) -> None:
    rng = random.Random(0)
    for number in range(count):
      process = run.start()
      goal = run.logged() + rng.randint(1, 5)
      moment = time.monotonic() + rng.uniform(1, 12)
      while process.poll() is None:
        is_over = time.monotonic() > moment if number % 3 == 0 else run.logged() >= goal
        if is_over:
          time.sleep(rng.uniform(0, 2))
          break
        time.sleep(0.01)
      assert process.poll() is None, f'ended after {number} kills: {run.output()[-500:]}'
      fault_runs.kill(process)

  return fault


@dataclasses.dataclass(frozen=True)
class Fault:
  """What is tried, on how many processes and steps; what is then said; whether in a bucket."""

  words: str
  act: Callable[[Run], None]
  processes: int = 2
  steps: int = STEPS
  told: str = ''
  in_bucket: bool = False


FAULTS = {
  'save': Fault('kill -9 of one of two processes in a save', kill_one(fault_runs.in_a_save, 1)),
  'save_lead': Fault(
    'kill -9 of the first of two processes in a save', kill_one(fault_runs.in_a_save, 0)
  ),
  'power': Fault('all processes gone at once in a save', kill_all(fault_runs.in_a_save)),
  'validation': Fault(
    'kill -9 of one of two in a validation', kill_one(fault_runs.in_validation, 1)
  ),
  'evaluation': Fault(
    'kill -9 of one of two in the evaluation', kill_one(fault_runs.in_evaluation, 1)
  ),
  'term': Fault(
    'SIGTERM to one of two processes', kill_one(steps_done(EVERY + 2), 1, signal.SIGTERM)
  ),
  'stalled': Fault(
    'one of two processes stops (SIGSTOP)', kill_one(steps_done(EVERY + 2), 1, signal.SIGSTOP)
  ),
  'stalled_lead': Fault(
    'the first of two processes stops', kill_one(steps_done(EVERY + 2), 0, signal.SIGSTOP)
  ),
  'skew': Fault('killed, and clocks of files up to two days off', clock_skew, 1),
  'bits': Fault(
    'killed, and a bit flipped in the newest checkpoint', damaged_checkpoint, 1,
    told=f'checkpoints/{SECOND} is damaged',
  ),
  'records': Fault('killed, and a bit flipped in the training records', damaged_records, 1),
  'full': Fault('full disk in a save', full_disk, 1),
  'bucket': Fault('bucket that takes nothing more', full_bucket, 1, in_bucket=True),
  'random': Fault('20 random kills of one process', random_kills(20), 1, 100),
}  # fmt: skip


# ---------------------------------------------------------------------------- the table
def try_fault(fault: Fault, run: Run) -> dict:
  """Tries one fault; what it is, whether it was survived, steps lost, seconds, problems."""
  problems, start = [], time.monotonic()
  try:
    sound = fault_runs.undisturbed(run)
    start = time.monotonic()
    fault.act(run)
    code = run.finish()
    problems += [f'exit code {code}: {run.output()[-300:]}'] if code else []
    problems += fault_runs.compare(run, sound) if code == 0 else []
    problems += [] if fault.told in run.output() else [f'nothing told of {fault.told!r}']
  except (AssertionError, RuntimeError) as error:
    problems.append(str(error))
  finally:
    run.stop()
    subprocess.run(['umount', '-l', run.workdir], capture_output=True)
  starts, lost = run.starts()
  return {
    'fault': fault.words, 'survived': not problems, 'lost': lost, 'starts': starts,
    'seconds': round(time.monotonic() - start), 'problems': problems,
  }  # fmt: skip


def main() -> int:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--work', type=pathlib.Path, required=True, help='an empty folder')
  parser.add_argument('--fault', nargs='+', choices=FAULTS, default=list(FAULTS))
  arguments = parser.parse_args()
  folder = arguments.work.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the runs, too
  fault_runs.prepare(folder)
  print('| fault | survived | steps lost | starts | s |\n|:--|:--|--:|--:|--:|', flush=True)
  failed = 0
  for name in arguments.fault:
    fault = FAULTS[name]
    with contextlib.ExitStack() as stack:
      run = Run(folder, name, fault.processes, fault.steps)
      if fault.in_bucket:
        run.gate = stack.enter_context(bucket_gate.gate())
        run.environment = stack.enter_context(bucket.served(folder / 'server.log', run.gate))
        os.environ.update(run.environment)  # for what is looked at from here
      row = try_fault(fault, run)
    failed += not row['survived']
    told = 'yes' if row['survived'] else f'**no**: {"; ".join(row["problems"])}'
    print(f'| {row["fault"]} | {told} | {row["lost"]} | {row["starts"]} | {row["seconds"]} |',
          flush=True)  # fmt: skip
  return min(failed, 1)


if __name__ == '__main__':
  sys.exit(main())
