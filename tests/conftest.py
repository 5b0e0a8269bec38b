"""Fixtures shared by all tests."""

import pathlib

import pytest


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The folder of real CT beside the checkout; tests skip where it is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
  if not folder.is_dir():
    pytest.skip('real CT is not beside this checkout')
  return folder
