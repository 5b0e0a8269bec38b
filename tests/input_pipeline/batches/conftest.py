import pytest

from input_pipeline import bricks


@pytest.fixture(scope='module')
def store(tiny_data):
  return bricks.open_bricks(tiny_data, 'phantom')
