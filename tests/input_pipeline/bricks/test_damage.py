"""Prepared data whose bits flipped: read as they were written, or named."""

import random
import shutil

import pytest

from input_pipeline import bricks
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
