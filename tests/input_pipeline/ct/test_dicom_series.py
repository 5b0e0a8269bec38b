import shutil

import numpy as np
import pydicom
import pytest

from input_pipeline.ct import dicom, dicom_series, structure_set, volume
from input_pipeline.files import inventory
from tests.input_pipeline.sources import layouts


def series(folder, name='i{:03d}', uid='1.2.3', image=None, **changes):
  """A series of 12 slices; fields by name, a function of the slice's number where it varies."""
  image = layouts.body([1])[0] if image is None else image
  layouts.write_files(folder, layouts.dicom_files(image, name, series=uid))
  for k in range(image.shape[2]):
    path = folder / name.format(k)
    ds = pydicom.dcmread(path)
    for field, value in changes.items():
      setattr(ds, field, value(k) if callable(value) else value)
    ds.save_as(path)
  return [name.format(k) for k in range(image.shape[2])]


def cut(path, size):
  path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
  ('field', 'values', 'parts'),
  [
    ('AcquisitionNumber', (1, 2), ('a1', 'a2')),
    ('TemporalPositionIdentifier', (10, 30), ('t10', 't30')),
    ('ConvolutionKernel', ('B30f', 'B70f'), ('B30f', 'B70f')),
    ('AcquisitionTime', ('101500', '101530.5'), ('t101500', 't101530.5')),
  ],
)
def test_phases_are_scans_of_their_own(field, values, parts, tmp_path):
  first = series(tmp_path, 'a{:03d}', **{field: values[0]})
  second = series(tmp_path, 'b{:03d}', **{field: values[1]}, SOPInstanceUID=lambda k: f'1.9.{k}')
  scans = dicom_series.find_series(tmp_path).series
  assert [scan.part for scan in scans] == list(parts)
  assert [sorted(scan.names) for scan in scans] == [first, second]
  assert [scan.place_in('root') for scan in scans] == ['root/a000', 'root/b000']


def test_acquisitions_that_take_turns_are_scans_of_their_own(tmp_path):
  names = series(tmp_path, AcquisitionNumber=lambda k: 1 + k % 2)
  scans = dicom_series.find_series(tmp_path).series
  assert [(sorted(scan.names), scan.part) for scan in scans] == [
    (names[::2], 'a1'),
    (names[1::2], 'a2'),
  ]


def test_an_acquisition_for_each_rotation_is_no_phase(tmp_path):
  names = series(tmp_path, AcquisitionNumber=lambda k: k)
  [scan] = dicom_series.find_series(tmp_path).series
  assert (sorted(scan.names), scan.part) == (names, '')
  assert scan.place_in(tmp_path) == str(tmp_path)
  series(tmp_path, AcquisitionNumber=lambda k: k // 4)  # three rotations
  [scan] = dicom_series.find_series(tmp_path).series
  assert sorted(scan.names) == names


def test_names_in_an_archive_that_begin_with_a_slash(tmp_path):
  content = {
    f'/{folder}/{name}': data
    for folder, uid in (('A', '1.2'), ('B', '1.3'))
    for name, data in layouts.dicom_files(layouts.body([1])[0], 'i{:03d}', series=uid).items()
  }
  layouts.write_zip(tmp_path / 'study.zip', content)
  scans = dicom_series.find_series(tmp_path / 'study.zip').series
  assert [scan.folder for scan in scans] == ['A', 'B']
  assert scans[0].place_in('x.zip') == 'x.zip/A'
  both = dicom_series.SeriesFiles('1.2', 1, ('/A/i0', 'B/i1'))
  assert both.folder == ''


def test_one_uid_in_two_folders(tmp_path):
  series(tmp_path / 'p1')
  series(tmp_path / 'p2', SOPInstanceUID=lambda k: f'1.9.{k}')
  scans = dicom_series.find_series(tmp_path).series
  assert [scan.folder for scan in scans] == ['p1', 'p2']
  assert [scan.place_in('x') for scan in scans] == ['x/p1', 'x/p2']


def without_uid(*paths):
  for path in paths:
    ds = pydicom.dcmread(path)
    ds.SeriesInstanceUID = ''
    ds.save_as(path)


class TestSlicesWithoutUid:
  @pytest.mark.parametrize('numbers', [[0], [4], range(11)])
  def test_are_of_the_only_series_in_their_folder(self, numbers, tmp_path):
    names = series(tmp_path / 'a', SeriesNumber=3)
    series(tmp_path / 'b', uid='1.2.4')
    without_uid(*(tmp_path / 'a' / names[k] for k in numbers))
    study = dicom_series.find_series(tmp_path)
    scans = {scan.uid: scan for scan in study.series}
    assert sorted(scans['1.2.3'].names) == [f'a/{name}' for name in names]
    assert (scans['1.2.3'].number, scans['1.2.3'].problem) == (3, '')
    assert len(scans['1.2.4'].names) == 12
    assert (study.left_out, dict(study.failed)) == ((), {})
    from input_pipeline.ct import dicom

    read = dicom.read_dicom(tmp_path / 'a')
    np.testing.assert_array_equal(read.array, layouts.body([1])[0])

  def test_fail_by_name_where_there_are_several(self, tmp_path):
    first, second = (series(tmp_path, f's{n}_{{:03d}}', uid=f'1.2.840.{n}') for n in (1, 2))
    without_uid(tmp_path / first[4])
    study = dicom_series.find_series(tmp_path)
    assert [len(scan.names) for scan in study.series] == [11, 12]
    assert list(study.failed) == ['s1_004']
    assert study.failed['s1_004'].startswith(
      f'{tmp_path}/s1_004: no SeriesInstanceUID, and its folder holds several series; '
    )
    assert study.left_out == ()

  def test_are_a_series_where_there_is_no_other(self, tmp_path):
    for folder in 'ab':
      names = series(tmp_path / folder)
      without_uid(*(tmp_path / folder / name for name in names))
    study = dicom_series.find_series(tmp_path)
    assert [(scan.uid, scan.folder, len(scan.names)) for scan in study.series] == [
      ('', 'a', 12), ('', 'b', 12),
    ]  # fmt: skip


class TestDamage:
  def test_a_damaged_header_fails_its_series_alone(self, tmp_path):
    for patient in ('good', 'bad'):
      series(tmp_path / patient, uid=f'1.2.{len(patient)}')
    path = tmp_path / 'bad' / 'i004'
    data = path.read_bytes()
    at = data.find(b'\x08\x00\x60\x00CS')
    path.write_bytes(data[: at + 4] + b'C\x92' + data[at + 6 :])
    study = dicom_series.find_series(tmp_path)
    problems = {scan.folder: scan.problem for scan in study.series}
    assert problems['good'] == ''
    assert problems['bad'].startswith(f'{path}: damaged DICOM (Unknown Value Representation')
    assert not study.failed
    with pytest.raises(volume.VolumeError, match='i004: damaged DICOM'):
      [bad] = (scan for scan in study.series if scan.problem)
      from input_pipeline.ct import dicom

      dicom.read_series(tmp_path, series=bad)

  @pytest.mark.parametrize('size', [0, 100, 300])
  def test_in_a_folder_of_several_series_its_uid_says_whose_it_is(self, size, tmp_path):
    for number in (1, 2):
      series(tmp_path, f's{number}_{{:03d}}', uid=f'1.2.840.{number}')
    path = tmp_path / 's2_004'
    data = path.read_bytes()
    at = data.find(b'\x08\x00\x60\x00CS')
    damaged = data[: at + 4] + b'C\x92' + data[at + 6 :]
    path.write_bytes(damaged if size == 300 else data[:size])
    study = dicom_series.find_series(tmp_path)
    if size == 300:
      assert [bool(scan.problem) for scan in study.series] == [False, True]
      assert not study.failed
    else:  # nothing tells whose it is
      assert [scan.problem for scan in study.series] == ['', '']
      assert list(study.failed) == ['s2_004']

  def test_slices_without_their_end(self, tmp_path):
    series(tmp_path)
    cut(tmp_path / 'i011', 330)  # an end slice, before its Rows
    [scan] = dicom_series.find_series(tmp_path).series
    assert scan.problem.startswith(f'{tmp_path}/i011: ')

  def test_a_slice_without_pixels_is_not_left_out(self, tmp_path):
    series(tmp_path)
    ds = pydicom.dcmread(tmp_path / 'i000')
    del ds.PixelData, ds.Rows
    ds.save_as(tmp_path / 'i000')
    [scan] = dicom_series.find_series(tmp_path).series
    assert 'i000: a CT slice without pixels; copy it again' in scan.problem

  def test_an_entry_of_a_zip(self, tmp_path):
    files = layouts.dicom_files(layouts.body([1])[0], 'CT/i{:03d}')
    layouts.write_zip(tmp_path / 'a.zip', files | {'CT/i012': b'', 'x/scan.nii': b'x'})
    data = (tmp_path / 'a.zip').read_bytes()
    at = data.find(files['CT/i003']) + 700
    (tmp_path / 'a.zip').write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    study = dicom_series.find_series(tmp_path / 'a.zip')
    [scan] = study.series
    assert 'CT/i003: cannot be unpacked (Bad CRC-32' in scan.problem
    assert 'and 1 more' in scan.problem
    assert study.left_out == ('NIfTI (1 file)',)
    assert scan.place_in('a.zip') == 'a.zip/CT'
    layouts.write_zip(tmp_path / 'b.zip', {'i1.dcm': b''})
    assert list(dicom_series.find_series(tmp_path / 'b.zip').failed) == ['i1.dcm']


def test_whatever_is_damaged_is_accounted_for_and_costs_only_its_series(tmp_path):
  rng = np.random.default_rng(0)
  sound = [series(tmp_path, f's{n}_{{:03d}}', uid=f'1.2.840.{n}') for n in (1, 2)]
  path = tmp_path / 's2_004'
  whole = path.read_bytes()
  header = whole.find(b'\xe0\x7f\x10\x00')  # up to the pixels
  for number in range(80):
    data = bytearray(whole)
    for place in rng.integers(0, header, rng.integers(1, 8)):
      data[place] = rng.integers(256)
    path.write_bytes(data[: rng.integers(len(data))] if number % 4 == 0 else data)
    study = dicom_series.find_series(tmp_path)
    [first] = (scan for scan in study.series if scan.uid == '1.2.840.1')
    assert sorted(set(first.names) - {path.name}) == sound[0]
    held = {name for scan in study.series for name in scan.names}
    told = (
      study.left_out
      or study.failed
      or study.unsupported
      or any(scan.problem for scan in study.series)
    )
    assert held == {*sound[0], *sound[1]} or (held >= {*sound[0], *sound[1]} - {path.name} and told)


@pytest.mark.parametrize('kind', ['1.2.840.10008.5.1.4.1.1.2.1', '1.2.840.10008.5.1.4.1.1.2.2'])
def test_enhanced_ct_is_no_fault_of_another_scan(kind, tmp_path):
  """It is a scan that was asked for, so a note beside the others would not do."""
  series(tmp_path / 'a')
  series(tmp_path / 'a', 'e', uid='1.2.4', image=layouts.body([1])[0][..., :1], SOPClassUID=kind)
  study = dicom_series.find_series(tmp_path)
  assert [len(scan.names) for scan in study.series] == [12]
  assert not study.series[0].problem and not study.left_out
  assert not study.failed
  [(name, problem)] = study.unsupported.items()
  assert name == 'a/e' and problem.startswith(f'{tmp_path}/a/e: enhanced multi-frame CT, which is')
  assert len(dicom.read_series(tmp_path).names) == 12
  assert structure_set.find(tmp_path) == []
  (tmp_path / 'alone').mkdir()
  shutil.move(tmp_path / 'a/e', tmp_path / 'alone/e')
  with pytest.raises(volume.VolumeError, match='convert it to NIfTI with dcm2niix'):
    dicom.read_dicom(tmp_path / 'alone')


def test_a_short_series_is_left_out_beside_others_of_its_study_alone(tmp_path):
  """Of another patient it is all there is: a copy that was cut short, say."""
  series(tmp_path / 'a', StudyInstanceUID='1.1')
  few = layouts.body([1])[0][..., :2]
  series(tmp_path / 'bolus', uid='1.2.4', image=few, StudyInstanceUID='1.1', SeriesNumber=2)
  series(tmp_path / 'b', uid='1.2.5', image=few, StudyInstanceUID='1.2')
  study = dicom_series.find_series(tmp_path)
  assert [(scan.folder, len(scan.names)) for scan in study.series] == [('a', 12), ('b', 2)]
  assert study.left_out == ('series 2 (2 positions)',)


def test_what_is_left_out_is_told(tmp_path):
  series(tmp_path / 'ct')
  series(tmp_path / 'mr', uid='1.4', Modality='MR')
  series(tmp_path / 'bolus', uid='1.5', ImagePositionPatient=[0, 0, 5], SeriesNumber=7)
  layouts.write_files(tmp_path, {'notes.txt': b'x', '.DS_Store': b'x'})
  study = dicom_series.find_series(tmp_path, inventory.look(tmp_path, ('dicom',)))
  assert [scan.folder for scan in study.series] == ['ct']
  assert set(study.left_out) == {
    'MR (12 files)', 'hidden (1 file)', 'text (1 file)', 'series 7 (1 positions)',
  }  # fmt: skip
