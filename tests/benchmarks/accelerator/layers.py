"""(g) The tests of the layers on the device: theirs is the process that has it."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

from tests.benchmarks.accelerator.runner import Case, Part, Settings

ROOT = pathlib.Path(__file__).resolve().parents[3]


def cases(settings: Settings) -> list[Case]:
  """One row."""
  return [Case('tests of the layers', functools.partial(_layers, settings.tiny))]


def _layers(tiny: bool) -> dict:
  if not (importlib.util.find_spec('pytest') and importlib.util.find_spec('hypothesis')):
    raise ModuleNotFoundError('pytest and hypothesis are needed for the tests of the layers')
  only = ['--collect-only'] if tiny else []
  command = [
    sys.executable,
    '-m',
    'pytest',
    '-q',
    *only,
    'tests/mome_jax/ops',
    'tests/mome_jax/moe',
  ]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
  if process.returncode:
    raise ValueError(process.stdout[-280:])
  return {'passed': process.stdout.strip().splitlines()[-1].strip('= ')}


PART = Part('What the tests of operations and of sparse experts say;', {'passed': 'passed'}, cases)
