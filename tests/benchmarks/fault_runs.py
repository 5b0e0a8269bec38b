"""Trainings that `faults.py` disturbs: how they are started, watched and compared."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from etils import epath

from tests.helpers import bucket
from tests.helpers.bucket_gate import Gate

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, EVERY = 12, 3
SECOND = 2 * EVERY  # step of the second checkpoint and of the first validation
SETTINGS = (
  '--config=demo', '--config.data_dir=data', '--config.data.spacing=(12.0, 12.0, 12.0)',
  '--config.data.patch=(16, 16, 16)', '--config.evaluation.window=(32, 32, 32)',
  '--config.evaluation.pictures=0', '--config.model.backbone.size=tiny',
  '--config.model.scales=(0, 1)', '--config.text.num_layers=1', '--config.init.text=',
  "--config.classes=('liver', 'spleen')", '--config.train.negatives=0',
  '--config.train.batch_size=4', '--config.train.log_every=1',
  f'--config.train.checkpoint_every={EVERY}', '--config.train.warmup_steps=1',
  '--config.train.learning_rate=1e-3', f'--config.validation.every={SECOND}',
  '--config.validation.patches=4',
)  # fmt: skip
PATIENCE = 1100.0  # seconds that a run may take
_START = 'start with {} steps logged'


@dataclasses.dataclass
class Run:
  """A training in `folder/name`, of one process or of several under launch/local_processes.py.

  Attributes:
    folder: of all runs, with the prepared data.
    name: of its workdir.
    processes: how many train together.
    steps: of the training.
    environment: of a bucket, which then holds the workdir; empty: it is on disk.
    gate: of that bucket.
    started: what ran or runs.
  """

  folder: pathlib.Path
  name: str
  processes: int = 2
  steps: int = STEPS
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  gate: Gate | None = None
  started: list[subprocess.Popen] = dataclasses.field(default_factory=list)

  @property
  def workdir(self) -> epath.Path:
    """Of the training."""
    if self.environment:
      return epath.Path(f'gs://{bucket.NAME}/{self.name}')
    return epath.Path(self.folder / self.name)

  def start(self) -> subprocess.Popen:
    """Starts it, in a session of its own."""
    launcher = [
      sys.executable, ROOT / 'launch/local_processes.py', '-n', str(self.processes),
      '--devices', '1', '--grace', '20', '--restarts', '3', '--',
    ]  # fmt: skip
    place = self.workdir if self.environment else self.name
    words = [
      sys.executable, '-m', 'mome_jax.main', *SETTINGS, f'--config.train.steps={self.steps}',
      f'--workdir={place}',
    ]  # fmt: skip
    environment = {
      **os.environ, **self.environment, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
      'MOME_CACHE': str(self.folder / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'XLA_FLAGS': '--xla_backend_optimization_level=0',  # most of the time is compiling
    }  # fmt: skip
    output = (self.folder / f'{self.name}.log').open('a')
    print(_START.format(self.logged()), file=output, flush=True)
    process = subprocess.Popen(
      [*(launcher if self.processes > 1 else ()), *words],
      cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True,
    )  # fmt: skip
    self.started.append(process)
    return process

  def stop(self) -> None:
    """Ends what still runs."""
    for process in self.started:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

  def finish(self) -> int:
    """Runs the command until it ends; its exit code."""
    return self.start().wait(PATIENCE)

  def output(self) -> str:
    """All that was printed."""
    return (self.folder / f'{self.name}.log').read_text()

  def rows(self) -> list[dict]:
    """What was logged of each step."""
    file = self.workdir / 'metrics.jsonl'
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]

  def logged(self) -> int:
    """The last step that was logged."""
    return max((row['step'] for row in self.rows()), default=0)

  def saved(self, step: int) -> bool:
    """Whether the checkpoint of a step is whole."""
    mark = 'commit_success.txt' if self.environment else 'ema'
    return (self.workdir / f'checkpoints/{step}/{mark}').exists()

  def starts(self) -> tuple[int, int]:
    """How often it was started, and how many steps that were logged were done again."""
    parts = re.split(_START.format(r'(\d+)'), self.output())[1:]
    lost = 0
    for logged, text in zip(parts[::2], parts[1::2], strict=True):
      begun = re.search(r'resuming \S+ at step (\d+)|training in \S+', text)
      if begun:
        lost += max(int(logged) - int(begun[1] or 0), 0)
    return len(parts) // 2, lost

  def files(self) -> set[str]:
    """What it leaves, but for the random parts of the names of TensorBoard and TensorStore."""
    if self.environment:
      prefix = f'{self.name}/'
      names = {name.removeprefix(prefix) for name in bucket.names(self.environment, prefix)}
    else:
      place = self.folder / self.name
      names = {str(path.relative_to(place)) for path in place.rglob('*') if path.is_file()}
    return {re.sub(r'events\.out.*|/d/\w+$', '', name) for name in names}


def prepare(folder: pathlib.Path) -> None:
  """Prepares the phantoms of all runs in `folder`."""
  if not (folder / 'data/phantom/prepare.json').exists():
    subprocess.run(
      [sys.executable, '-m', 'input_pipeline.prepare', '--source=phantom', '--data_dir=data',
       '--spacing=12', '--brick=16', '--cases=3'],
      cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip


def undisturbed(like: Run) -> Run:
  """The run that another one is compared with, trained where it is not there yet."""
  size = '' if like.steps == STEPS else f'_{like.steps}'
  where = '_bucket' if like.environment else ''
  run = dataclasses.replace(like, name=f'sound_{like.processes}{size}{where}')
  if not (run.workdir / 'evaluation/summary.json').exists():
    code = run.finish()
    assert code == 0, run.output()[-3000:]
  return run


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
  left = {name for name in run.files() if 'damaged/' not in name}
  if left != sound.files():
    problems.append(f'other files: {sorted(left ^ sound.files())[:5]}')
  return problems


# ---------------------------------------------------------------------------- when it hurts
Moment = Callable[[Run], bool]


def steps_done(count: int) -> Moment:
  """After so many steps."""
  return lambda run: len(run.rows()) >= count


def saved_and_on(run: Run) -> bool:
  """Two steps after the second checkpoint, once that is whole."""
  return run.saved(SECOND) and len(run.rows()) >= SECOND + 2


def in_a_save(run: Run) -> bool:
  """While the second checkpoint is written."""
  return any((run.workdir / 'checkpoints').glob(f'{SECOND}.*tmp*'))


def in_validation(run: Run) -> bool:
  """After the step before a validation, whose row is written after it."""
  return len(run.rows()) >= SECOND - 1


def in_evaluation(run: Run) -> bool:
  """After the last step, once its checkpoint is there, before there are scores."""
  return run.saved(run.steps) and not (run.workdir / 'evaluation/summary.json').exists()


def wait_for(run: Run, process: subprocess.Popen, moment: Moment) -> None:
  """Waits until a run is where a fault is to come."""
  deadline = time.monotonic() + PATIENCE
  while not moment(run):
    if process.poll() is not None or time.monotonic() > deadline:
      raise RuntimeError(f'{run.name}: the moment of the fault never came\n{run.output()[-2000:]}')
    time.sleep(0.005)


def children(process: subprocess.Popen) -> list[int]:
  """Ids of the processes that a launcher started."""
  text = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text()
  return [int(word) for word in text.split()]


def kill(process: subprocess.Popen) -> None:
  """Power that goes off: launcher and processes are gone at once."""
  os.killpg(process.pid, signal.SIGKILL)
  process.wait(PATIENCE)


def flip(path: pathlib.Path) -> bytes:
  """Flips a bit in the middle of a file; gives what the file held."""
  sound = path.read_bytes()
  content = bytearray(sound)
  content[len(content) // 2] ^= 16
  path.write_bytes(content)
  return sound


def largest(paths: Iterable[pathlib.Path]) -> pathlib.Path:
  """The largest of some files."""
  return max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_size)
