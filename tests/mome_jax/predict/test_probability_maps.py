"""Maps of probabilities: their values, and a disk without room for them."""

import os

import nibabel as nib
import numpy as np
import pytest
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from mome_jax.predict import probability_maps
from mome_jax.predict.request import Options


@pytest.mark.parametrize('reserves', [True, False])  # macOS cannot
def test_probabilities_stay_within_one(reserves, run, tmp_path, monkeypatch):
  if not reserves:
    monkeypatch.delattr(os, 'posix_fallocate')
    monkeypatch.setattr(probability_maps, '_CHUNK', 1000)
  save_scan(tmp_path / 'a.nii.gz')
  options = Options(preview=False, probabilities=True)
  run(tmp_path / 'a.nii.gz', threshold=Threshold(lambda x: 100 * x), options=options)
  image = nib.load(tmp_path / 'out' / 'a_probabilities' / 'liver.nii.gz')
  stored = np.asarray(image.dataobj.get_unscaled())
  assert stored.max() == 255
  for dtype in (np.float64, np.float32):
    values = image.get_fdata(dtype=dtype)
    assert values.min() == 0
    assert 1 - 1e-6 < values.max() <= 1
    np.testing.assert_allclose(values, stored / 255.0, atol=1e-6)


def test_probabilities_that_find_no_room_cost_only_themselves(run, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full)
  save_scan(tmp_path / 'a.nii.gz')
  [result] = run(tmp_path / 'a.nii.gz', options=Options(preview=False, probabilities=True))
  assert result.message == 'a_probabilities is not written: No space left on device'
  assert sorted(os.listdir(tmp_path / 'out'))[:2] == ['a_seg.json', 'a_seg.nii.gz']


@pytest.mark.parametrize('reserves', [True, False])
def test_a_full_disk_keeps_nothing_of_them(reserves, tmp_path, monkeypatch):
  def full(handle=None, *_):
    if handle is not None:
      os.write(handle, b'0' * 100)  # ext4 keeps what it found before it was full
    raise OSError(28, 'No space left on device')

  if reserves:
    monkeypatch.setattr(os, 'posix_fallocate', full)
  else:
    monkeypatch.delattr(os, 'posix_fallocate')
    monkeypatch.setattr(probability_maps, 'bytes', lambda size: full(), raising=False)
  save_scan(tmp_path / 'a.nii.gz')
  scan = volume.read_image(tmp_path / 'a.nii.gz')
  with pytest.raises(OSError, match='No space'):
    probability_maps.ProbabilityMaps(tmp_path, scan, [0])
  assert os.listdir(tmp_path) == ['a.nii.gz']
