import json
import pathlib
import subprocess
import sys

import compiled
from tiny import SETTINGS, STEPS
from without import without

ROOT = pathlib.Path(__file__).resolve().parents[3]


def run(folder, environment, module, *arguments):
  command = [sys.executable, '-m', module, *arguments]
  process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stdout + process.stderr
  return process.stdout


def test_preparing_and_training_where_tensorflow_is_not_installed(tmp_path, programs):
  environment = without('tensorflow', tmp_path / 'site') | compiled.variables(programs)
  environment['PYTHONPATH'] += f':{ROOT}'
  run(tmp_path, environment, 'input_pipeline.prepare', '--source=phantom', '--data_dir=data',
      '--spacing=12', '--brick=16', '--cases=3')  # fmt: skip
  config = f'--config={ROOT / "mome_jax/configs/demo.py"}'
  training = config, '--workdir=run', '--config.data_dir=data', *SETTINGS
  changes = '--config.train.log_every=1', '--config.evaluation.pictures=0'
  run(tmp_path, environment, 'mome_jax.main', *training, *changes)
  log = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in log] == list(range(1, STEPS + 1))
  assert json.loads((tmp_path / 'run/config.json').read_text())['data']['loader'] == 'auto'
  assert list((tmp_path / 'run/tensorboard').glob('events*'))
  summary = json.loads((tmp_path / 'run/evaluation/summary.json').read_text())
  assert summary['step'] == STEPS
