"""Structure sets that cannot be read: an older one is not taken in their place without a word."""

import pytest
from structure_sets import series, structures

from input_pipeline.errors import UserError
from tests.input_pipeline.sources import layouts
from tests.input_pipeline.sources.test_rtstruct_folder import CORD, listed, patient


def empty(path):
  path.write_bytes(b'')


def dangle(path):
  path.symlink_to('/nowhere/new.dcm')


def two_sets(folder):
  """A patient with a structure set of 2020; the path of a newer one in a folder of its own."""
  series(folder / 'CT')
  for name in ('RS', 'RS2'):
    (folder / name).mkdir()
  structures(folder / 'RS' / 'old.dcm', {'SpinalCord': CORD}, date='20200101')
  return folder / 'RS2'


@pytest.mark.parametrize(
  ('spoil', 'name', 'message'),
  [
    (empty, 'new.dcm', 'RS2/new.dcm: cannot be read, it is empty; copy it again'),
    (dangle, 'new.dcm', 'RS2/new.dcm: a link to /nowhere/new.dcm, which is not there'),
    (dangle, 'RS0001', 'RS2/RS0001: a link to /nowhere/new.dcm, which is not there'),
  ],
)
def test_a_structure_set_that_cannot_be_read_costs_its_patient(spoil, name, message, tmp_path):
  spoil(two_sets(tmp_path / 'p1') / name)
  patient(tmp_path / 'p2', number=2)
  cases, _ = listed(tmp_path)
  assert not cases['p1'].supervised and cases['p2'].supervised
  with pytest.raises(UserError, match=message):
    cases['p1'].load()


def test_so_it_is_in_a_zip_archive(tmp_path):
  folder = two_sets(tmp_path / 'files').parent
  content = {
    path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob('*/*.dcm')
  }
  layouts.write_zip(tmp_path / 'in' / 'p1.zip', content | {'RS2/new.dcm': b''})
  with pytest.raises(UserError, match=r'RS2/new\.dcm: cannot be read, it is empty; pack it again'):
    listed(tmp_path / 'in')[0]['p1'].load()


def test_an_empty_file_whose_name_says_nothing_is_told(tmp_path):
  empty(two_sets(tmp_path / 'p1') / 'RS0001')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord',)
  assert notes == [f'{tmp_path}/p1: left out: empty (1 file): RS2/RS0001']


def test_one_beside_another_series_is_told(tmp_path):
  two_sets(tmp_path / 'p1').rmdir()
  series(tmp_path / 'p1' / 'CT2', 2)
  empty(tmp_path / 'p1' / 'CT2' / 'new.dcm')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord',)
  assert len(notes) == 1 and 'CT2/new.dcm: cannot be read, it is empty' in notes[0]
