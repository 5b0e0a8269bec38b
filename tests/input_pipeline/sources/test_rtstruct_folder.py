"""Contours as labels: geometry by hand, names, several structure sets, what is not labelled."""

import copy
import json
import warnings

import numpy as np
import pydicom
import pytest
import structure_sets
from structure_sets import box, series, structures

from input_pipeline import bricks, prepare, sources
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import structure_set
from input_pipeline.errors import UserError
from input_pipeline.prepare import check
from input_pipeline.sources import rtstruct_patients
from tests.input_pipeline.sources import layouts

SOURCE = sources.get_source('rtstruct_folder')
CORD = [box((11, 12), (9, 11), k) for k in range(2, 8)]
# Columns count to the left: the right parotid has the lower ones.
RIGHT, LEFT = ([box(columns, (4, 8), k) for k in (4, 5, 6)] for columns in ((2, 6), (17, 21)))


def patient(folder, rois=None, number=1, **fields):
  series(folder, number)
  rois = {'SpinalCord': CORD, 'Parotid_R': RIGHT} if rois is None else rois
  structures(folder / 'rs.dcm', rois, number, **fields)


def declare(folder, **fields):
  (folder / 'dataset.json').write_text(json.dumps(fields))


def listed(folder):
  cases, notes = SOURCE.listed(str(folder))
  return {case.name: case for case in cases}, notes


def voxels(scan, name):
  """Own grid: (columns, rows, slices) bool."""
  mask = TEMPLATE.code_table([name])[:, 0][scan.codes]
  return mask[::-1, ::-1]  # columns to the left, rows to posterior


def boxed(columns, rows, slices):
  mask = np.zeros(layouts.SHAPE, bool)
  mask[columns[0] : columns[1] + 1, rows[0] : rows[1] + 1, slices[0] : slices[1] + 1] = True
  return mask


def load(case):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    scan = case.load()
  return scan, [str(w.message) for w in caught]


def test_contours_are_where_they_were_drawn(tmp_path):
  patient(tmp_path / 'p1')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord', 'right parotid')
  scan, told = load(cases['p1'])
  np.testing.assert_array_equal(voxels(scan, 'spinal cord'), boxed((11, 12), (9, 11), (2, 7)))
  np.testing.assert_array_equal(voxels(scan, 'right parotid'), boxed((2, 6), (4, 8), (4, 6)))
  assert notes == told == []
  np.testing.assert_array_equal(scan.image, np.maximum(layouts.body([1])[0], -1024))
  assert not [f for f in check.check_case(cases['p1']) if f.kind == 'error']


@pytest.mark.parametrize('value', [['1', '0', '0', '0', '1'], None])
def test_a_slice_whose_directions_are_none_costs_its_patient(value, tmp_path):
  patient(tmp_path / 'p1')
  patient(tmp_path / 'p2')
  path = tmp_path / 'p2' / 'ct002.dcm'
  ds = pydicom.dcmread(path)
  ds.ImageOrientationPatient = value
  ds.save_as(path)
  cases, _ = listed(tmp_path)
  assert voxels(load(cases['p1'])[0], 'spinal cord').any()
  with pytest.raises(UserError, match=f'{path.name}.*ImageOrientationPatient'):
    cases['p2'].load()


@pytest.mark.parametrize('holes', ['keyhole', 'separate'])
def test_holes(holes, tmp_path):
  outer, inner = box((2, 10), (2, 10), 5), box((5, 6), (5, 6), 5)
  rings = [outer, inner]
  if holes == 'keyhole':
    rings = [[*outer, outer[0], *inner, inner[0], outer[0]]]
  patient(tmp_path / 'p1', {'Brainstem': [*rings, box((15, 16), (3, 4), 5)]})
  scan, told = load(listed(tmp_path)[0]['p1'])
  expected = boxed((2, 10), (2, 10), (5, 5)) & ~boxed((5, 6), (5, 6), (5, 5))
  expected |= boxed((15, 16), (3, 4), (5, 5))  # a second piece
  np.testing.assert_array_equal(voxels(scan, 'brainstem'), expected)
  assert not told


def test_names_are_declared_with_wildcards_or_looked_up(tmp_path):
  rois = {'PAROTID LT': LEFT, 'Par_R_opt': RIGHT, 'cord': CORD, 'BODY': CORD, 'Couch 1': CORD,
          'PTV_70_Gy': RIGHT}  # fmt: skip
  patient(tmp_path / 'p1', rois)
  declare(
    tmp_path,
    rois={'left parotid': 'parotid*lt', 'right parotid': ['none', 'PAR_R_*'], 'ptv70': 'ptv?70*'},
    ignored=['couch*'],
    new_classes=[{'name': 'ptv70'}],
    licence='ours',
  )
  cases, notes = listed(tmp_path)
  template = SOURCE.template(str(tmp_path))
  assert set(cases['p1'].supervised) == {'left parotid', 'right parotid', 'spinal cord', 'ptv70'}
  assert notes == ['rtstruct_folder: ROIs that stand for no class, with patients: BODY (1)']
  scan, told = load(cases['p1'])
  assert 'ptv70 has 75 voxels of right parotid too' in ' '.join(told) or (
    'right parotid has 75 voxels of ptv70 too' in ' '.join(told)
  )
  left = template.code_table(['left parotid'])[:, 0][scan.codes][::-1, ::-1]
  np.testing.assert_array_equal(left, boxed((17, 21), (4, 8), (4, 6)))


def test_an_organ_without_its_side_is_split(tmp_path):
  patient(tmp_path / 'p1', {'Parotids': [*LEFT, *RIGHT]})
  scan, _ = load(listed(tmp_path)[0]['p1'])
  np.testing.assert_array_equal(voxels(scan, 'left parotid'), boxed((17, 21), (4, 8), (4, 6)))
  np.testing.assert_array_equal(voxels(scan, 'right parotid'), boxed((2, 6), (4, 8), (4, 6)))


def test_a_tumor_lies_over_its_organ(tmp_path):
  liver = [box((2, 8), (3, 9), k) for k in (3, 4, 5)]
  patient(tmp_path / 'p1', {'GTV': [box((4, 5), (4, 5), 4)], 'Liver': liver})
  declare(tmp_path, rois={'liver tumor': 'GTV*'})
  scan, told = load(listed(tmp_path)[0]['p1'])
  np.testing.assert_array_equal(voxels(scan, 'liver'), boxed((2, 8), (3, 9), (3, 5)))
  np.testing.assert_array_equal(voxels(scan, 'liver tumor'), boxed((4, 5), (4, 5), (4, 4)))
  assert not told


@pytest.mark.parametrize('hole', [False, True])  # in the contours of the organ
def test_a_tumor_that_was_not_looked_for_is_plain_organ(hole, tmp_path):
  inner = [box((5, 7), (5, 7), k) for k in (3, 4)]
  liver = [box((2, 10), (2, 10), k) for k in (3, 4)] + inner * hole
  patient(tmp_path / 'p1', {'Liver': liver, 'Liver tumor': inner, 'SpinalCord': CORD})
  declare(tmp_path, supervised={'p1': ['liver']}, partial=['liver tumor'])
  case = listed(tmp_path)[0]['p1']
  assert case.supervised == ('liver',) and not case.slice_ranges
  scan, _ = load(case)
  np.testing.assert_array_equal(voxels(scan, 'liver'), boxed((2, 10), (2, 10), (3, 4)))
  assert set(np.unique(scan.codes)) == {0, TEMPLATE.get('liver').index}


def test_the_newest_structure_set_counts_or_the_one_that_is_named(tmp_path):
  patient(tmp_path / 'p1', date='20200101', label='first')
  structures(
    tmp_path / 'p1' / 'a.dcm', {'Larynx': CORD, 'SpinalCord': CORD}, label='second', date='20210101'
  )
  structures(tmp_path / 'p1' / 'z.dcm', {'Mandible': CORD}, number=5, date='20220101')
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord', 'larynx')
  left_out = 'rs.dcm (a newer one has spinal cord too), z.dcm (of a scan that is not here)'
  assert f'{tmp_path}/p1: takes a.dcm (second), not {left_out}' in notes
  for name in ('FIRST', 'rs.*'):
    declare(tmp_path, structure_set=name)
    assert listed(tmp_path)[0]['p1'].supervised == ('spinal cord', 'right parotid')
  declare(tmp_path, structure_set='third')
  with pytest.raises(sources.SourceError, match=r'no structure set called third; there are first'):
    listed(tmp_path)[0]['p1'].load()


def test_the_series_that_was_contoured_is_read(tmp_path):
  patient(tmp_path / 'p1', number=2)
  series(tmp_path / 'p1' / 'other', 3, image=np.full(layouts.SHAPE, 7, np.int16))
  assert load(listed(tmp_path)[0]['p1'])[0].image.max() == 500
  structures(tmp_path / 'p1' / 'rs.dcm', {'SpinalCord': CORD}, None)
  with pytest.raises(sources.SourceError, match='several CT series'):
    listed(tmp_path)[0]['p1'].load()


def test_contours_of_a_scan_that_is_not_read_say_why(tmp_path):
  patient(tmp_path / 'p1')
  for name in (tmp_path / 'p1').glob('ct*.dcm'):
    header = pydicom.dcmread(name)
    header.SOPClassUID = '1.2.840.10008.5.1.4.1.1.2.1'
    header.save_as(name)
  with pytest.raises(sources.SourceError, match='enhanced multi-frame CT, which is not read; conv'):
    listed(tmp_path)[0]['p1'].load()


def test_what_was_not_contoured_is_unknown_unless_it_is_said_to_be_absent(tmp_path):
  patient(tmp_path / 'p1')
  patient(tmp_path / 'p2', {'SpinalCord': CORD, 'Parotid_R': []}, 2)
  assert listed(tmp_path)[0]['p2'].supervised == ('spinal cord',)
  declare(tmp_path, missing_is='absent')
  assert listed(tmp_path)[0]['p2'].supervised == ('spinal cord', 'right parotid')
  declare(tmp_path, supervised={'p2': ['Parotid_R', 'larynx']})
  cases = listed(tmp_path)[0]
  assert cases['p2'].supervised == ('right parotid', 'larynx')
  assert cases['p1'].supervised == ('spinal cord', 'right parotid')
  assert not voxels(load(cases['p2'])[0], 'right parotid').any()
  declare(tmp_path, supervised=['Parotid_R'])
  assert {case.supervised for case in listed(tmp_path)[0].values()} == {('right parotid',)}
  declare(tmp_path, missing_is='no')
  with pytest.raises(sources.SourceError, match='"missing_is" is \'no\'; expected'):
    listed(tmp_path)


@pytest.mark.parametrize('fields', [{}, {'supervised': ['Parotid_R']}])
def test_contours_of_what_is_declared_absent_are_told(fields, tmp_path):
  patient(tmp_path / 'p1')
  declare(tmp_path, absent=['spinal cord', 'bladder'], **fields)
  told = 'p1 has contours of spinal cord, which "absent" declares outside its field of view'
  with pytest.raises(UserError, match=told):
    listed(tmp_path)
  declare(tmp_path, absent=['bladder', 'parotid_l'], **fields)
  case = listed(tmp_path)[0]['p1']
  assert case.absent == ('bladder', 'left parotid') and 'right parotid' in case.labelled


def test_partial_classes_are_known_where_they_are_contoured(tmp_path):
  patient(tmp_path / 'p1')
  declare(tmp_path, partial=['spinal cord'])
  [case] = listed(tmp_path)[0].values()
  # From the lower face of slice 2 to the upper one of slice 7, above the centre of the lowest.
  assert case.slice_ranges == {'spinal cord': (pytest.approx(9), pytest.approx(45))}


def test_points_do_not_widen_the_range_of_a_partial_class(tmp_path):
  patient(tmp_path / 'p1')
  path = tmp_path / 'p1' / 'rs.dcm'
  dataset = pydicom.dcmread(path)
  contours = dataset.ROIContourSequence[0].ContourSequence
  point = copy.deepcopy(contours[0])
  point.ContourGeometricType, point.ContourData = 'POINT', [0, 0, 60]
  contours.append(point)
  dataset.save_as(path)
  declare(tmp_path, partial=['spinal cord'])
  [case] = listed(tmp_path)[0].values()
  assert case.slice_ranges == {'spinal cord': (pytest.approx(9), pytest.approx(45))}


def test_sides_that_were_contoured_stay_where_both_were_contoured_too(tmp_path):
  across = [box((2, 14), (4, 8), k) for k in (4, 5, 6)]  # over the middle of the body
  rois = {'Parotid_R': across, 'Parotid_L': LEFT}
  patient(tmp_path / 'p1', rois)
  patient(tmp_path / 'p2', rois | {'Parotids': across + LEFT}, number=2)
  sides, both = (load(listed(tmp_path)[0][name]) for name in ('p1', 'p2'))
  np.testing.assert_array_equal(both[0].codes, sides[0].codes)
  assert not [line for line in both[1] if 'cut at the middle' in line]


@pytest.mark.parametrize('partial', [['parotid'], ['right parotid', 'left parotid']])
@pytest.mark.parametrize('rois', [{'Parotid_R': RIGHT, 'Parotid_L': LEFT}, {'Parotids': RIGHT}])
def test_partial_pairs_hold_for_sides_and_sides_for_pairs(tmp_path, rois, partial):
  patient(tmp_path / 'p1', rois)
  declare(tmp_path, partial=[*partial, 'larynx'])
  cases, notes = listed(tmp_path)
  assert set(cases['p1'].slice_ranges) == {'right parotid', 'left parotid'}
  assert len(set(cases['p1'].slice_ranges.values())) == 1
  assert [note for note in notes if 'partial: nobody has contours of larynx' in note]


def test_a_range_of_slices_that_are_not_axial_is_no_range_of_heights(tmp_path, monkeypatch):
  patient(tmp_path / 'p1')
  declare(tmp_path, partial=['spinal cord'])
  monkeypatch.setattr(rtstruct_patients, '_heights', lambda *_: (np.nan,) * 3)
  [case] = listed(tmp_path)[0].values()
  with pytest.raises(UserError, match='spinal cord is contoured in a range of axial slices'):
    case.load()


@pytest.mark.parametrize(
  ('rois', 'message'),
  [
    ({'Larynx': [box((3, 5), (3, 5), 4, shift=0.5)]}, 'lies between the slices or across them'),
    ({'Larynx': [[*box((3, 5), (3, 5), 4)[:2], *box((3, 5), (3, 5), 6)[2:]]]}, 'across them'),
    ({'Larynx': [box((3, 5), (3, 5), 40)]}, 'no closed contour of Larynx lies in the scan'),
    ({'Larynx': []}, 'no ROI stands for a class (none has contours)'),
    ({'GTVp': CORD}, 'no ROI stands for a class (GTVp)'),
  ],
)  # fmt: skip
def test_contours_that_cannot_be_used(rois, message, tmp_path):
  patient(tmp_path / 'p1', rois)
  [case] = listed(tmp_path)[0].values()
  [*_, finding] = check.check_case(case)
  assert finding.kind == 'error' and message in finding.message


@pytest.mark.filterwarnings('ignore:Invalid value for VR DS')
def test_a_damaged_structure_set_is_named(tmp_path):
  series(tmp_path / 'p1')
  path = tmp_path / 'p1' / 'rs.dcm'
  path.write_bytes(b'\0' * 128 + b'DICM' + b'no DICOM')
  with pytest.raises(UserError, match=r'p1/rs\.dcm: .*; copy it again'):
    structure_set.find(tmp_path / 'p1')
  for number in ('NaN', '1e300'):
    structures(path, {'SpinalCord': CORD})
    broken = pydicom.dcmread(path)
    contour = broken.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [number, *contour.ContourData[1:]]
    broken.save_as(path)
    with pytest.raises(UserError, match=r'rs\.dcm: damaged structure set .*SpinalCord: '):
      structure_set.find(tmp_path / 'p1')


def test_odd_contours_are_told(tmp_path):
  ring = box((3, 5), (3, 5), 4)
  patient(
    tmp_path / 'p1', {'Larynx': [ring, ring, box((3, 5), (3, 5), 7), box((3, 5), (3, 5), 30)]}
  )
  scan, told = load(listed(tmp_path)[0]['p1'])
  assert '1 beyond the scan, 1 doubled' in told[0]
  assert 'no contour in 2 of the 4 slices' in told[1]
  expected = boxed((3, 5), (3, 5), (4, 4)) | boxed((3, 5), (3, 5), (7, 7))
  np.testing.assert_array_equal(voxels(scan, 'larynx'), expected)
  others = [ring[::-1], [*ring[1:], ring[0]], [*ring, ring[0]], [*ring[2:], *ring[:2]][::-1]]
  patient(tmp_path / 'p1', {'Larynx': [ring, *others]})
  scan, told = load(listed(tmp_path)[0]['p1'])
  assert '4 doubled' in told[0]
  np.testing.assert_array_equal(voxels(scan, 'larynx'), boxed((3, 5), (3, 5), (4, 4)))
  patient(tmp_path / 'p1', {'Larynx': [ring]}, kind='OPEN_PLANAR')
  with pytest.raises(sources.SourceError, match='no closed contour'), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    listed(tmp_path)[0]['p1'].load()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rois': {'lefd parotid': 'P'}}, "rois: 'lefd parotid' is no class; did you mean left"),
    ({'rois': ['a']}, '"rois" must map classes to names'),
    ({'rois': {'larynx': [3]}}, "rois of 'larynx' must be a name or a list of names"),
    ({'ignored': 'BODY'}, '"ignored" must be a list'),
    ({'splits': {'test': ['p9']}}, "splits names 'p9', who is not there"),
    ({'splits': {'dev': []}}, '"splits" must map'),
    ({'supervised': {'p9': []}}, "supervised names 'p9', who is not there"),
    ({'supervised': {'p1': ['x']}}, "supervised of p1: rois: 'x' is no class"),
    ({'supervised': {'p1': 'larynx'}}, "supervised of p1: 'larynx' is no list of classes"),
    ({'supervised': {'p1': 3}}, 'supervised of p1: 3 is no list of classes'),
    ({'partial': 'larynx'}, "partial: 'larynx' is no list of classes"),
    ({'new_classes': [{}]}, 'it has no name'),
  ],
)  # fmt: skip
def test_mistakes_in_the_file(fields, message, tmp_path):
  patient(tmp_path / 'p1')
  declare(tmp_path, **fields)
  with pytest.raises(sources.SourceError) as caught:
    listed(tmp_path)
  assert str(tmp_path / 'dataset.json') in str(caught.value) and message in str(caught.value)


def test_patterns_of_two_classes(tmp_path):
  patient(tmp_path / 'p1', {'Par': RIGHT, 'Parx': LEFT})
  declare(tmp_path, rois={'right parotid': ['par'], 'left parotid': ['par*']})
  assert set(listed(tmp_path)[0]['p1'].supervised) == {'right parotid', 'left parotid'}
  declare(tmp_path, rois={'right parotid': ['p*'], 'left parotid': ['par*']})
  with pytest.raises(sources.SourceError, match="the ROI 'Par' stands for right parotid and left"):
    listed(tmp_path)[0]['p1'].load()


def test_several_rois_of_a_class_are_one(tmp_path):
  patient(tmp_path / 'p1', {'Cord_1': CORD[:3], 'Cord_2': CORD[3:]})
  declare(tmp_path, rois={'spinal cord': 'cord*'})
  cases, notes = listed(tmp_path)
  assert notes == [f'{tmp_path / "p1"}: spinal cord is Cord_1 and Cord_2 together']
  np.testing.assert_array_equal(
    voxels(load(cases['p1'])[0], 'spinal cord'), boxed((11, 12), (9, 11), (2, 7))
  )


def test_from_files_to_prepared_data(tmp_path):
  download = tmp_path / 'in'
  for number in range(1, 4):
    patient(download / f'p{number}', number=number)
  layouts.write_zip(
    download / 'p4.zip', {f'd/{p.name}': p.read_bytes() for p in (download / 'p1').iterdir()}
  )
  (download / 'notes.txt').write_text('x')
  (download / 'p5').mkdir()
  declare(download, splits={'validation': ['p4']})
  command = [f'--source={SOURCE.name}', f'--manual_dir={download}', f'--data_dir={tmp_path / "d"}',
             '--spacing=8,8,6', '--brick=16']  # fmt: skip
  assert prepare.main(command) == 1
  (download / 'p5').rmdir()
  assert prepare.main(command) == 0
  store = bricks.open_bricks(tmp_path / 'd', SOURCE.name)
  assert {case.supervised for case in store.cases} == {('spinal cord', 'right parotid')}
  [volume] = bricks.open_volumes(tmp_path / 'd', SOURCE.name)
  scan, _ = load(listed(download)[0]['p1'])
  np.testing.assert_array_equal(volume.codes, scan.codes)


def test_the_helper_draws_what_it_says():
  assert structure_sets.box((2, 6), (4, 8), 3)[0] == (-100 + 1.5 * 8, -50 + 3.5 * 8, 18)


def test_an_empty_roi_that_fits_two_classes_costs_nothing(tmp_path):
  patient(tmp_path / 'p1', {'Par': [], 'SpinalCord': CORD})
  declare(tmp_path, rois={'right parotid': ['p*'], 'left parotid': ['par*']})
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('spinal cord',) and not notes
