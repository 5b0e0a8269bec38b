"""Which structure set of a patient is taken, and where its slices lie."""

import numpy as np
import pydicom
import pytest
from structure_sets import series, structures

from input_pipeline.errors import UserError
from tests.input_pipeline.sources import layouts
from tests.input_pipeline.sources.test_rtstruct_folder import (
  CORD,
  LEFT,
  RIGHT,
  boxed,
  declare,
  listed,
  load,
  patient,
  voxels,
)


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


@pytest.mark.parametrize('degrees', [0, 25])
def test_partial_classes_are_known_where_they_are_contoured_by_a_tilted_gantry(degrees, tmp_path):
  """Slices moved within their planes, which lie further apart along the way than in height."""
  tilt = np.tan(np.radians(degrees))
  series(tmp_path / 'p1')
  for path in (tmp_path / 'p1').glob('*.dcm'):
    dataset = pydicom.dcmread(path)
    x, y, z = map(float, dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [x, round(y + tilt * z, 6), z]
    dataset.save_as(path)
  cord = [[(x, y + tilt * z, z) for x, y, z in ring] for ring in CORD]
  structures(tmp_path / 'p1' / 'rs.dcm', {'SpinalCord': cord})
  declare(tmp_path, partial=['spinal cord'])
  case = listed(tmp_path)[0]['p1']
  scan, _ = load(case)
  # As the sampler and the scores measure: slices times their spacing.
  heights = np.arange(scan.codes.shape[2]) * scan.geometry.spacing[2]
  low, high = case.slice_ranges['spinal cord']
  known = (low < heights) & (heights < high)
  np.testing.assert_array_equal(known, voxels(scan, 'spinal cord').any((0, 1)))
  assert scan.geometry.spacing[2] == pytest.approx(6 / np.cos(np.radians(degrees)))
  assert high - low == pytest.approx(6 * scan.geometry.spacing[2])


@pytest.mark.parametrize('name', ['RS/*', 'rs/1-1.dcm', 'R[S]/1-1.dcm'])
def test_a_structure_set_is_named_by_its_folder_where_archives_call_all_alike(name, tmp_path):
  newer = two_sets(tmp_path / 'p1')
  (tmp_path / 'p1' / 'RS' / 'old.dcm').rename(tmp_path / 'p1' / 'RS' / '1-1.dcm')
  both = {'Larynx': CORD, 'SpinalCord': CORD}
  structures(newer / '1-1.dcm', both, date='20210101')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord', 'larynx')
  why = 'a newer one has spinal cord too'
  assert f'{tmp_path}/p1: takes RS2/1-1.dcm (plan), not RS/1-1.dcm ({why})' in notes
  declare(tmp_path, structure_set=name)
  assert listed(tmp_path)[0]['p1'].supervised == ('spinal cord',)


def test_folders_count_only_where_a_pattern_names_one(tmp_path):
  newer = two_sets(tmp_path / 'p1').rename(tmp_path / 'p1' / 'older ones')  # beside RS/old.dcm
  structures(newer / '1-1.dcm', {'Larynx': CORD}, date='20210101')
  declare(tmp_path, structure_set='old*')
  assert listed(tmp_path)[0]['p1'].supervised == ('spinal cord',)


def test_one_structure_set_a_structure_is_one_of_all(tmp_path):
  """As tools leave them that export each segment by itself; of versions the newest counts."""
  folder = tmp_path / 'p1'
  newer = two_sets(folder)  # the spinal cord in RS/old.dcm
  structures(newer / 'larynx.dcm', {'Larynx': LEFT}, date='20210101')
  structures(newer / 'larynx_old.dcm', {'Larynx': CORD, 'Mandible': CORD}, date='20200601')
  structures(newer / 'rings.dcm', {'Ring': LEFT}, date='20220101')
  declare(tmp_path, partial=['spinal cord', 'larynx'])
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord', 'larynx')
  assert notes[0] == (
    f'{folder}: takes RS2/larynx.dcm (plan) and RS/old.dcm (plan) together, not RS2/larynx_old.dcm '
    '(a newer one has larynx too), RS2/rings.dcm (no ROI stands for a class)'
  )
  scan, _ = load(cases['p1'])
  np.testing.assert_array_equal(voxels(scan, 'spinal cord'), boxed((11, 12), (9, 11), (2, 7)))
  np.testing.assert_array_equal(voxels(scan, 'larynx'), boxed((17, 21), (4, 8), (4, 6)))
  low, high = (cases['p1'].slice_ranges[name] for name in ('spinal cord', 'larynx'))
  assert low[1] - low[0] == pytest.approx(36) and high[1] - high[0] == pytest.approx(18)
  declare(tmp_path, structure_set='larynx_old*')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('larynx', 'mandible')
  assert 'not RS/old.dcm (not asked for)' in notes[0]


def test_a_patient_with_one_structure_set_that_counts_is_not_converted_again(tmp_path):
  """By what reads a case `prepare` knows it: cases of earlier versions had these arguments."""
  newer = two_sets(tmp_path / 'p1')
  structures(newer / 'new.dcm', {'Larynx': CORD, 'SpinalCord': CORD}, date='20210101')
  load = listed(tmp_path)[0]['p1'].load
  place, _, name, meanings, _ = load.args
  assert (place, name, load.keywords) == (tmp_path / 'p1', 'RS2/new.dcm', {})
  assert meanings == {'Larynx': 'larynx', 'SpinalCord': 'spinal cord'}


def test_sides_and_their_pair_are_versions_of_each_other(tmp_path):
  newer = two_sets(tmp_path / 'p1')
  structures(newer / 'a.dcm', {'Parotids': [*LEFT, *RIGHT]}, date='20210101')
  structures(newer / 'b.dcm', {'Parotid_L': LEFT}, date='20220101')
  assert listed(tmp_path)[0]['p1'].supervised == ('spinal cord', 'left parotid')


def test_an_ambiguous_name_counts_in_a_structure_set_that_is_taken(tmp_path):
  """Of an older version nothing counts, so that its names cost the patient nothing."""
  newer = two_sets(tmp_path / 'p1')
  structures(newer / 'new.dcm', {'SpinalCord': CORD}, date='20220101')
  structures(newer / 'older.dcm', {'SpinalCord': CORD, 'Par': LEFT}, date='20210101')
  declare(tmp_path, rois={'right parotid': ['p*'], 'left parotid': ['par*']})
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord',)
  assert 'RS2/older.dcm (a newer one has spinal cord too)' in notes[0]
  structures(newer / 'older.dcm', {'Larynx': CORD, 'Par': LEFT}, date='20210101')
  with pytest.raises(UserError, match="the ROI 'Par' stands for right parotid and left"):
    listed(tmp_path)[0]['p1'].load()


def test_contours_of_another_scan_of_a_folder_are_told(tmp_path):
  """As of patients in one folder whose PatientIDs anonymising has made equal."""
  newer = two_sets(tmp_path / 'p1')
  series(newer, 2)
  structures(newer / 'rs.dcm', {'Larynx': CORD}, 2, date='20210101')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('larynx',)
  assert notes == [
    f'{tmp_path}/p1: takes RS2/rs.dcm (plan), not RS/old.dcm (of another scan, which counts in a '
    'folder of its own)'
  ]


def test_scans_of_several_patient_ids_can_be_chosen_from(tmp_path):
  newer = two_sets(tmp_path / 'p1')
  series(newer, 2)
  for path in (tmp_path / 'p1').glob('*/ct*.dcm'):
    header = pydicom.dcmread(path)
    header.PatientID = path.parent.name
    header.save_as(path)
  structures(newer / 'rs.dcm', {'Larynx': CORD}, 2)
  with pytest.raises(UserError, match='name what to take by "structure_set" in dataset.json'):
    listed(tmp_path)[0]['p1'].load()
  declare(tmp_path, structure_set='old*')
  assert listed(tmp_path)[0]['p1'].supervised == ('spinal cord',)
