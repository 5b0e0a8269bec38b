"""The sparse index says what the dense one of earlier versions said, and has its digest."""

import hashlib
import io
import shutil

import hypothesis
import numpy as np
from hypothesis.extra import numpy as arrays_of

from input_pipeline import bricks
from input_pipeline.bricks import voxel_index


@hypothesis.given(
  arrays_of.arrays(
    np.int32, (5, 256), fill=hypothesis.strategies.just(0),
    elements=hypothesis.strategies.integers(0, 2**18),
  )
)  # fmt: skip
def test_the_dense_array_comes_back(dense):
  builder = voxel_index.Builder()
  for row in dense:
    builder.add(row)
  stored = builder.arrays()
  assert b''.join(voxel_index.dense_bytes(stored, 5)) == dense.tobytes()
  for ours, theirs in zip(
    voxel_index.entries(stored), voxel_index.entries({'code_voxels': dense}), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def as_before(index):
  """Rewrites an index as earlier versions had it; gives the digest that they computed."""
  with np.load(io.BytesIO(index.read_bytes())) as stored:
    content = {name: stored[name] for name in stored.files if name not in voxel_index.NAMES}
    count = len(stored['case'])
    dense = np.frombuffer(b''.join(voxel_index.dense_bytes(stored, count)), np.int32)
  content['code_voxels'] = dense.reshape(count, 256)
  np.savez_compressed(index, **content)
  digest = hashlib.sha256()
  for name in sorted(content):
    array = content[name]
    digest.update(repr((name, array.shape, array.dtype.str)).encode() + array.tobytes())
  return digest.hexdigest()


def test_indices_of_earlier_versions_are_read(tiny_data, tmp_path):
  shutil.copytree(tiny_data, tmp_path / 'data')
  names = ('liver', 'spleen', 'liver tumor')
  now = bricks.open_bricks(tiny_data, 'phantom')
  (index,) = (tmp_path / 'data').rglob('index.npz')
  digest = as_before(index)
  before = bricks.open_bricks(tmp_path / 'data', 'phantom')
  assert now.digest() == before.digest() == digest
  np.testing.assert_array_equal(now.class_voxels(names), before.class_voxels(names))
  assert now.class_voxels(names).dtype == np.int64
  part = now.part([(case.source, case.name) for case in now.cases[1:3]])
  whole = now.class_voxels(names)[np.isin(now.case, (1, 2))]
  np.testing.assert_array_equal(part.class_voxels(names), whole)
