"""Prepared phantoms that several test files read."""

import pathlib

import pytest

from input_pipeline import bricks, sources
from input_pipeline.bricks import writer

SPACING = (8.0, 9.0, 7.0)  # differs from the scans' own, and from axis to axis
OWN_SPACING = (9.0, 8.0, 8.0)


@pytest.fixture(scope='session')
def tiny_cases() -> list[sources.Case]:
  """Six training and two validation phantoms on coarse grids."""
  return sources.phantom_cases(train=6, validation=2, spacing=OWN_SPACING)


@pytest.fixture(scope='session')
def tiny_data(tiny_cases, tmp_path_factory) -> pathlib.Path:
  """Folder of the prepared `tiny_cases`; the bricks have an edge of 16."""
  data_dir = tmp_path_factory.mktemp('data')
  writer.write(sources.get_source('phantom'), tiny_cases, data_dir, spacing=SPACING, brick=16)
  (data_dir / 'phantom' / bricks.SETTINGS).write_text(
    f'{{"settings": {{"version": "{bricks.VERSION}"}}}}'
  )
  return data_dir
