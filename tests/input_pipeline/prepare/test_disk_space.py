"""How much disk a preparation takes, by hand."""

import functools
import pathlib
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from input_pipeline import prepare
from input_pipeline.prepare import disk_space
from input_pipeline.sources import Case, files


def case(folder, name, split, ending='.nii.gz'):
  path = folder / f'{name}{ending}'
  image = sitk.GetImageFromArray(np.zeros((6, 10, 20), np.int16))
  image.SetSpacing((1, 1, 2))
  sitk.WriteImage(image, path)
  return Case('mine', name, split, ('liver',), functools.partial(files.load_nifti, path, path, {}))


@pytest.mark.parametrize('ending', ['.nii.gz', '.nrrd', '.mha'])
def test_bytes_of_cases(ending, tmp_path):
  """1200 voxels of 2 mm3 are 300 of 8 mm3; 1.2 bytes each, and twice while it runs."""
  train, held_out = case(tmp_path, 'a', 'train', ending), case(tmp_path, 'b', 'validation')
  assert disk_space.estimate([train], (2, 2, 2)) == 720
  assert disk_space.estimate([train, held_out], (2, 2, 2)) == 720 + 2880


def test_cases_that_cannot_be_read_cost_nothing(tmp_path):
  (tmp_path / 'c.nii').write_bytes(b'none')
  loads = [
    functools.partial(files.load_nifti, tmp_path / 'c.nii', tmp_path / 'c.nii', {}),
    functools.partial(files.fail, 'no label map'),
    lambda: None,
  ]
  cases = [Case('mine', 'c', 'train', (), load) for load in loads]
  assert disk_space.estimate(cases, (1, 1, 1)) == 0


def test_a_full_disk_is_told_before_anything_is_written(tmp_path):
  free = shutil.disk_usage(tmp_path).free
  folder = tmp_path / 'not' / 'there'
  with pytest.raises(disk_space.DiskError, match='not/there: the scans take about'):
    disk_space.check(folder, free * 2, 'the scans')
  assert 'the scans: about 1.5 kB, ' in disk_space.check(folder, 1500, 'the scans')
  assert 'the scans: of unknown size, ' in disk_space.check(folder, 0, 'the scans')
  assert not pathlib.Path(tmp_path / 'not').exists()
  assert disk_space.check('gs://bucket/data', free * 2, 'the scans').startswith('the scans: about')


def test_what_a_killed_run_wrote_is_not_asked_for_again(tmp_path, monkeypatch):
  """720 bytes are needed; a kill leaves 500 of them, and 300 free."""
  scan = case(tmp_path, 'a', 'train')
  usage = shutil.disk_usage(tmp_path)._replace(free=300)
  monkeypatch.setattr(disk_space.shutil, 'disk_usage', lambda place: usage)
  options = [scan], tmp_path / 'data', 'mine', (2, 2, 2), 'the scans'
  with pytest.raises(disk_space.DiskError, match='the scans take about 720 bytes, and 300 bytes'):
    prepare.check_disk(*options)
  staged = tmp_path / 'data/.mine.incomplete/cases'
  staged.mkdir(parents=True)
  (staged / 'a.array_record').write_bytes(bytes(400))
  with pytest.raises(disk_space.DiskError, match='720 bytes .400 bytes are written., and 300 b'):
    prepare.check_disk(*options)
  (staged / 'b.array_record').write_bytes(bytes(100))
  assert prepare.check_disk(*options).startswith('the scans: about 720 bytes')


@pytest.mark.parametrize(
  ('number', 'text'),
  [(0, '0 bytes'), (1500, '1.5 kB'), (28_000_000, '28 MB'), (10**15, '1000 TB')],
)  # fmt: skip
def test_words(number, text):
  assert disk_space.in_words(number) == text
