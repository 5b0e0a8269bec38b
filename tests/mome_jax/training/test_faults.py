"""Whole trainings under faults: each goes on and ends as one that nothing happened to."""

import os
import pathlib

import pytest

from tests.benchmarks import faults

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('faults')
  faults.prepare(folder)
  return folder


@pytest.mark.parametrize('name', faults.FAULTS)
def test_a_fault_is_survived(folder, name):
  if name == 'full' and os.geteuid():
    pytest.skip('mounting a small file system needs root')
  sound = faults.undisturbed(folder, faults.FAULTS[name][1])
  row = faults.try_fault(name, folder, sound)
  assert row['survived'], row['problems']
  if name != 'random':
    assert row['lost'] <= faults.EVERY
