"""(f) Trains from packed data for some minutes, resumable, and leaves the model in small pieces."""

import functools
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile

from tests.benchmarks.accelerator.runner import Case, Part, Settings

PIECE = 16 * 2**20  # bytes
_GRACE = 120  # seconds for the last step and its checkpoint
AROUND = _GRACE + 60  # seconds of a part beside the training: also its start, and the export
_STOPPED = 75  # exit code after saving, see `mome_jax.main`


def cases(settings: Settings) -> list[Case]:
  """One row, which is done when all steps are."""
  return [Case(settings.config, functools.partial(_train, settings))]


def _train(settings: Settings) -> dict:
  if not settings.data_dir:
    raise ValueError('part f trains on prepared sources; name their folder with --data-dir')
  workdir = settings.output / 'run'
  command = [
    sys.executable, '-m', 'mome_jax.main', f'--config={settings.config}', f'--workdir={workdir}',
    f'--config.data_dir={settings.data_dir}', '--config.data.loader=auto',
  ]  # fmt: skip
  log = settings.output / 'run.log'
  with log.open('ab') as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
    try:
      code = process.wait(60 * settings.minutes)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)  # it saves, and the same command goes on
      try:
        code = process.wait(_GRACE)
      except subprocess.TimeoutExpired:
        process.kill()  # otherwise it would be waited for without an end
        raise
  if code not in (0, _STOPPED):
    raise RuntimeError(f'training ended with {code}: {log.read_text()[-200:]}')
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  pieces = split(_export(workdir, settings.output / 'model'), settings.output / 'pieces')
  result = {
    'steps': rows[-1]['step'],
    'loss': rows[-1].get('loss'),
    'patches': rows[-1].get('patches_per_second'),
    'wait': rows[-1].get('data_wait'),
    'pieces': len(pieces),
  }
  if code == _STOPPED:
    raise RuntimeError(f'not done, and saved at {result}; the same command goes on')
  return result


def _export(workdir: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  shutil.rmtree(folder, ignore_errors=True)  # of an earlier stop
  command = ['--checkpoint', workdir, '--output', folder, '--dtype', 'bfloat16']
  subprocess.run(
    [sys.executable, '-m', 'mome_jax.export', *command], check=True, capture_output=True
  )
  return folder


def split(folder: pathlib.Path, output: pathlib.Path, size: int = PIECE) -> list[pathlib.Path]:
  """Packs a folder into files of at most `size` bytes; `cat output/* | tar -x` unpacks them."""
  output.mkdir(parents=True, exist_ok=True)
  for old in output.glob('model.tar.*'):
    old.unlink()
  whole = output / 'whole.tar'
  with tarfile.open(whole, 'w') as archive:
    archive.add(folder, folder.name)
  pieces = []
  with whole.open('rb') as file:
    while content := file.read(size):
      piece = output / f'model.tar.{len(pieces):03d}'
      piece.write_bytes(content)
      pieces.append(piece)
  whole.unlink()
  return pieces


PART = Part(
  'Training from packed data; the model is in `pieces/`: `cat pieces/model.tar.* | tar -x`;',
  {
    'steps': 'steps',
    'loss': 'loss',
    'patches': 'patches/s',
    'wait': 'share of time waiting for data',
    'pieces': 'pieces',
  },
  cases,
)
