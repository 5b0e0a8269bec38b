"""What tells cases apart: files, meanings and voxels."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.bricks import identity, writer
from input_pipeline.errors import UserError
from input_pipeline.sources import chaos, files, ircadb, openkbp, totalsegmentator
from input_pipeline.sources.base import loader
from input_pipeline.sources.phantom import cohort


@dataclasses.dataclass
class Settings:
  window: tuple[float, float]


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (({1: 'liver'},), ({1: 'spleen'},)),
    (({1: 'liver'},), ({2: 'liver'},)),
    (({1: ('liver', 'spleen')},), ({1: ('liver',)},)),
    (({1: None},), ({},)),
    ((Settings((0.0, 1.0)),), (Settings((0.0, 2.0)),)),
    ((np.arange(3),), (np.arange(3) + 1,)),
    ((np.zeros(4),), (np.zeros((2, 2)),)),
    ((TEMPLATE,), (TEMPLATE.extend([{'name': 'metastasis', 'parent': 'liver'}]),)),
    (('1',), (1,)),
    ((frozenset({'a', 'b'}),), (frozenset({'a'}),)),
  ],
)
def test_every_argument_of_a_loader_counts(one, other):
  described = [identity.describe(functools.partial(print, *args)) for args in (one, other)]
  assert described[0] != described[1]
  assert described[0] == identity.describe(functools.partial(print, *one))
  assert described[0] != identity.describe(functools.partial(len, *one))


def test_a_description_is_the_same_in_another_process():
  code = (
    'import functools; from input_pipeline.sources import labels; '
    'from input_pipeline.bricks import identity; '
    "print(identity.describe(functools.partial(labels.convert, {1: {'b', 'a'}}, x=None)), end='')"
  )
  texts = {
    subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in '12'
  }
  assert len(texts) == 1 and 'convert' in texts.pop()


@pytest.mark.parametrize(
  ('function', 'name'),
  [
    (files.load, 'load'),
    (files.load_nifti, 'load_nifti'),
    (files.fail, 'fail'),
    (chaos._load, '_load'),
    (ircadb._load, '_load'),
    (totalsegmentator._load, '_load'),
    (openkbp._load, '_load_openkbp'),
    (cohort._load, '_load_phantom'),
  ],
)
def test_a_loader_keeps_the_name_it_was_first_stored_under(function, name):
  path = pathlib.Path('/nowhere/scan.nii.gz')
  load = functools.partial(function, path, {1: 'liver'})
  described = "['/nowhere/scan.nii.gz', ('/nowhere/scan.nii.gz',)], {1: 'liver'}"
  assert identity.describe(load) == f'{name}([{described}], {{}})'


def test_a_loader_may_be_renamed_and_moved():
  @loader('read')
  def before(path):
    return path

  @loader('read')
  def after(path):
    return path

  assert identity.describe(functools.partial(before, 1)) == identity.describe(
    functools.partial(after, 1)
  )


def test_keys_of_cases_are_those_of_data_that_users_have_prepared():
  conversion = writer.Conversion((1.5, 1.5, 1.5), 64, "('phantom', None, [])")
  cases = {case.name: case for case in sources.get_source('phantom').cases(None)}
  # A held-out scan: from the first release that wrote version 1.1.0.
  assert conversion.key(cases['phantom_1000001']) == '0b789cf07ffc8c3a2d6bf781'
  # One to train on: from the first whose labels do not move against their image.
  assert conversion.key(cases['phantom_liver_0000000']) == '84560c9ad747527e1633c58e'


def test_a_folder_stands_for_every_file_below_it(tmp_path):
  series = tmp_path / 'series'
  (series / 'more').mkdir(parents=True)
  (series / '1.dcm').write_text('a')
  (series / 'more' / '2.dcm').write_text('b')
  os.symlink(series, series / 'loop')
  load = functools.partial(print, series)
  assert identity.files_of(load) == [f'{series}/1.dcm', f'{series}/more/2.dcm']
  before = identity.describe(load)
  stamp = (series / 'more' / '2.dcm').stat()
  (series / 'more' / '2.dcm').write_text('bb')  # in place: the folder's own time stays
  os.utime(series / 'more' / '2.dcm', ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
  longer = identity.describe(load)
  assert longer != before
  (series / '3.dcm').write_text('c')
  assert identity.describe(load) not in (before, longer)


@pytest.mark.parametrize(('header', 'voxels'), [('a.mhd', 'a.raw'), ('a.hdr', 'a.img')])
def test_voxels_beside_a_header_belong_to_it(tmp_path, header, voxels):
  (tmp_path / header).write_text('ObjectType = Image\nElementDataFile = a.raw\n')
  (tmp_path / voxels).write_text('1')
  load = functools.partial(print, tmp_path / header)
  assert identity.files_of(load) == [str(tmp_path / header), str(tmp_path / voxels)]
  before = identity.describe(load)
  (tmp_path / voxels).write_text('12')
  assert identity.describe(load) != before


def test_cases_of_one_name_are_refused(tmp_path):
  cases = [
    sources.Case('s', name, 'train', (), functools.partial(print, tmp_path / place))
    for name, place in (('a', 'one'), ('b', 'two'), ('a', 'three'))
  ]
  identity.check_names(cases[:2])
  with pytest.raises(UserError, match=r"two cases are called 'a' \(.*/one and .*/three\); rename"):
    identity.check_names(cases)


def test_a_link_stands_for_its_target(tmp_path):
  (tmp_path / 'target').write_text('a')
  os.symlink(tmp_path / 'target', tmp_path / 'link')
  load = functools.partial(print, tmp_path / 'link')
  before = identity.describe(load)
  (tmp_path / 'target').write_text('other')
  assert identity.describe(load) != before
  (tmp_path / 'target').unlink()
  assert identity.describe(load) != before


def test_a_scan_is_its_voxels():
  image = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
  digest = identity.scan_digest(image)
  assert identity.scan_digest(np.asfortranarray(image)) == digest
  assert identity.scan_digest(image.astype('>i2')) == digest
  assert identity.scan_digest(image.reshape(5, 4, 6)) != digest
  image[0, 0, 0] += 1
  assert identity.scan_digest(image) != digest
