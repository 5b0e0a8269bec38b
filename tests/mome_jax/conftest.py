"""Fixtures of the tests of prediction."""

import pytest
from threshold import Threshold

from mome_jax import predict
from mome_jax.predict.request import Options


@pytest.fixture
def run(tmp_path):
  """run(*scans, ...) -> results; the output folder is tmp_path/out, without previews."""

  def call(*scans, threshold=None, **keywords):
    keywords = {'options': Options(preview=False), 'existing': 'overwrite'} | keywords
    return predict.predict(threshold or Threshold(), scans, tmp_path / 'out', **keywords)

  return call
