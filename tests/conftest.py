"""Fixtures shared by all tests."""

import pathlib

import hypothesis
import pytest

# Shared machines stall, and a red run must be red again: no time limits, the same examples.
hypothesis.settings.register_profile('steady', deadline=None, derandomize=True)
hypothesis.settings.load_profile('steady')


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The folder of real CT beside the checkout; tests skip where it is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
  if not folder.is_dir():
    pytest.skip('real CT is not beside this checkout')
  return folder
