"""Memory of a training step of the mixture against its baseline, as the compiler plans it."""

import os
import pathlib
import re
import subprocess
import sys

import compiled
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_mixture_needs_little_more_memory_than_its_baseline(dtype):
  benchmark = ROOT / 'tests' / 'benchmarks' / 'mixture_cost.py'
  options = [f'--dtype={dtype}', '--steps=0']
  done = subprocess.run(
    [sys.executable, benchmark, *options],
    env={**os.environ, **compiled.SOON, 'PYTHONPATH': str(ROOT)},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert float(re.search(r'\| ratio \| ([\d.]+)', done.stdout)[1]) <= 1.25
