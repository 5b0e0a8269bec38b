"""Workdir and data on gs:// through the libraries' file layers; the bucket is in memory.

Orbax and ArrayRecord reach a bucket by clients of their own; they are not covered here.
"""

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from input_pipeline import bricks
from mome_jax import checkpoint
from mome_jax.configs import demo
from mome_jax.errors import ConfigError
from mome_jax.pictures import training_curves
from mome_jax.text.tokenizer import Tokenizer
from mome_jax.text.vectors import TextVectors
from mome_jax.training import text_start


class Bucket(MemoryFileSystem):
  protocol = ('gs', 'gcs')
  store = {}
  pseudo_dirs = ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix('gs://'))


@pytest.fixture
def bucket(monkeypatch):
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(backend.fsspec_backend, 'fs', lambda path: fsspec.filesystem('gcs'))
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  return epath.Path('gs://bucket/run')


def test_a_workdir_in_a_bucket(bucket):
  config = demo.get_config()
  checkpoint.save_description(str(bucket), config)
  assert 'config.json' in {path.name for path in bucket.iterdir()}
  assert checkpoint.load_config('gs://bucket/run').to_dict() == config.to_dict()
  assert Tokenizer(checkpoint.text_file(bucket, config)).vocab_size == Tokenizer().vocab_size
  training_curves.training_curves(bucket / 'pictures' / 'training.png', [{'step': 1, 'loss': 3.0}])
  assert (bucket / 'pictures' / 'training.png').read_bytes()[1:4] == b'PNG'


def test_a_published_text_encoder_in_a_bucket_is_told(bucket):
  """It was looked for in `gs:/bucket/...` of this machine."""
  bucket.mkdir(parents=True, exist_ok=True)
  (bucket / 'spiece.model').write_text('')
  config = demo.get_config()
  config.init.text = str(bucket)
  with pytest.raises(ConfigError, match='gs://bucket/run is in a bucket; give a place on a disk'):
    text_start.find(config)


def test_text_vectors_in_a_bucket(bucket):
  vectors = TextVectors(('a', 'b'), np.eye(2, dtype=np.float32), {'model': 'x'})
  bucket.mkdir(parents=True, exist_ok=True)
  vectors.save(bucket / 'text.npz')
  assert TextVectors.load('gs://bucket/run/text.npz').key == vectors.key


def test_prepared_data_in_a_bucket(bucket):
  with pytest.raises(bricks.NotPreparedError, match='gs://bucket/data/phantom: not prepared'):
    bricks.open_bricks('gs://bucket/data', 'phantom')
  place = epath.Path('gs://bucket/data/phantom')
  place.mkdir(parents=True, exist_ok=True)
  (place / bricks.SETTINGS).write_text('{"settings": {"version": "0"}}')
  assert bricks.read_settings('gs://bucket/data', 'phantom') == {'settings': {'version': '0'}}
  with pytest.raises(bricks.NotPreparedError, match='version 0, need'):
    bricks.open_bricks('gs://bucket/data', 'phantom')
