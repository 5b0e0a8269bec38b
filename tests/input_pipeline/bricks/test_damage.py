"""Prepared data whose bits flipped: read as they were written, or named."""

import contextlib
import random
import resource
import shutil

import pytest
from etils import epath

from input_pipeline import bricks
from input_pipeline.bricks import shards
from input_pipeline.bricks.reader import NotPreparedError


def read(data_dir):
  """All that training and evaluation take from a prepared source."""
  template = bricks.read_template(data_dir, ('phantom',))
  store = bricks.open_bricks(data_dir, 'phantom', template)
  volumes = bricks.open_volumes(data_dir, 'phantom', template)
  scans = [volumes[i] for i in range(len(volumes))]
  return [
    store.digest(),
    [(case.name, case.supervised, case.shape) for case in store.cases],
    store.class_voxels(['liver', 'spleen']).tobytes(),
    [(image.tobytes(), label.tobytes()) for image, label in map(store.read, range(len(store)))],
    [
      (scan.name, repr(scan.geometry), scan.image.tobytes(), scan.codes.tobytes()) for scan in scans
    ],
  ]


@pytest.mark.parametrize('count', [3, pytest.param(150, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_read_without_a_word(tiny_data, tiny_cases, tmp_path, count):
  data_dir = tmp_path / 'data'
  shutil.copytree(tiny_data, data_dir)
  sound, rng, named = read(data_dir), random.Random(0), set()
  files = [path for path in sorted(data_dir.rglob('*')) if path.is_file()]
  for path in files:
    content = path.read_bytes()
    for _ in range(count):
      changed = bytearray(content)
      changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
      path.write_bytes(bytes(changed))
      try:
        got = read(data_dir)
      except NotPreparedError as error:
        assert str(data_dir / 'phantom') in str(error)
        named.add(path.name.rpartition('.')[2])
      else:
        assert got == sound, path
    path.write_bytes(content)
  assert {'npz', 'json'} <= named and any('of' in name for name in named)  # shards, too


@contextlib.contextmanager
def files_of_at_most(size):
  """Whatever is written beyond so many bytes is refused, as by a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_case_that_the_disk_does_not_hold_is_an_error_of_the_disk(tmp_path):
  """Its file is beside where it belongs, on the disk that was looked at, and does not stay."""
  path = epath.Path(tmp_path) / 'case.array_record'
  shards.write_records(path, [b'before'])
  noise = [random.Random(0).randbytes(100_000)]
  with files_of_at_most(20_000), pytest.raises(OSError, match=r'case.array_record'):
    shards.write_records(path, noise)
  assert [file.name for file in tmp_path.iterdir()] == ['case.array_record']
  assert list(shards.read_records(path)) == [b'before']
