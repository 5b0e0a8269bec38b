"""A server of the page, and the folder of its temporary files."""

import desks
import pytest
from threshold import Threshold


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'temporary'
  path.mkdir()
  return path


@pytest.fixture
def client(folder):
  with desks.desk(Threshold(), folder) as desk, desks.client(desk) as client:
    yield client
