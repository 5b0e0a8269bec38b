"""Which scans files and folders hold, and what they are called."""

import os
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from threshold import save_scan

from mome_jax.errors import UserError
from mome_jax.predict import find_scans, formats
from tests.input_pipeline.sources import layouts

SHAPE = (6, 7, 8)


def scan(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  return save_scan(path, SHAPE, (3, 3, 3))


def series(folder, uid='1.2.3', changes=lambda ds: None, name='i{:03d}.dcm'):
  layouts.write_files(folder, layouts.dicom_files(layouts.body([1])[0], name, series=uid))
  for path in folder.glob(name.replace('{:03d}', '*')):
    ds = pydicom.dcmread(path)
    changes(ds)
    ds.save_as(path)
  return folder


def names(*paths, **keywords):
  return [case.name for case in find_scans.find_scans(paths, **keywords)[0]]


class TestNames:
  def test_equal_names_get_their_folders_in_front(self, tmp_path):
    files = [scan(tmp_path / name) for name in ('p/s1/ct.nii.gz', 'q/s1/ct.nii', 'p/s2/ct.nii.gz')]
    assert names(files[0]) == ['ct']
    assert names(files[0], files[2]) == ['s1_ct', 's2_ct']
    assert names(*files) == ['p_s1_ct', 'q_s1_ct', 's2_ct']
    assert names(tmp_path) == ['p_s1_ct', 's2_ct', 'q_s1_ct']

  def test_a_name_that_is_taken_by_a_name_with_its_folder(self, tmp_path):
    for name in ('s1/ct.nii', 's2/ct.nii', 's1_ct.nii'):
      scan(tmp_path / name)
    distinct = set(names(tmp_path))
    assert len(distinct) == 3
    assert all(name.endswith('ct') for name in distinct)

  def test_two_of_one_name_in_one_folder_cannot_be_told_apart(self, tmp_path):
    for name in ('s1/ct.nii', 's1/ct.nii.gz', 's2/ct.nii'):
      scan(tmp_path / name)
    cases, _ = find_scans.find_scans([tmp_path])
    assert [case.name for case in cases] == ['s1_ct', 's1_ct', 's2_ct']
    problem = 'ct.nii and ct.nii.gz would both be written as s1_ct_seg; rename one'
    assert [case.problem for case in cases] == [problem, problem, '']

  @pytest.mark.parametrize('packed', [False, True])
  def test_what_is_not_read_beside_a_scan_leaves_it_its_name(self, packed, tmp_path):
    enhanced = lambda ds: setattr(ds, 'SOPClassUID', pydicom.uid.EnhancedCTImageStorage)
    folder = series(series(tmp_path / 'p1'), '1.2.4', enhanced, 'e{:03d}.dcm')
    if packed:
      shutil.make_archive(str(folder), 'zip', folder)
      folder = folder.with_suffix('.zip')
    cases, _ = find_scans.find_scans([folder])
    assert [(case.name, bool(case.problem)) for case in cases] == [
      ('p1', False), ('e000.dcm', True)
    ]  # fmt: skip
    assert 'enhanced multi-frame CT' in cases[1].problem and '(and 11 more)' in cases[1].problem

  def test_names_that_some_disks_take_for_one_get_their_folders(self, tmp_path):
    for name in ('s1/CT.nii', 's2/ct.nii', 's1/\u00fc.nii', 's2/u\u0308.nii'):
      scan(tmp_path / name)
    assert names(tmp_path) == ['s1_CT', 's1_\u00fc', 's2_ct', 's2_u\u0308']

  def test_names_of_one_folder_that_some_disks_take_for_one_are_told(self, tmp_path):
    for name in ('a/Ct.nii', 'a/ct.nii', 'b/x.nii', 'B/x.nii'):
      scan(tmp_path / name)
    cases, _ = find_scans.find_scans([tmp_path / 'a'])
    assert [case.problem for case in cases] == [
      f'Ct.nii and ct.nii would both be written as {name}_seg; rename one' for name in ('Ct', 'ct')
    ]
    for case in find_scans.find_scans([tmp_path / 'b', tmp_path / 'B'])[0]:
      assert f'{tmp_path}/b/x.nii and {tmp_path}/B/x.nii would both be written' in case.problem
    for number, name in enumerate(('P1', 'p1')):
      series(tmp_path / 'study' / name, f'1.2.{number}')
    cases, _ = find_scans.find_scans([tmp_path / 'study'])
    assert not any(case.problem for case in cases)
    assert len({case.name.lower() for case in cases}) == 2

  def test_a_long_name_is_cut_to_its_ends_and_a_hash(self, tmp_path):
    for end in 'ab':
      scan(tmp_path / 'n' / f'{"å" * 60}{"x" * 80}{end}.nii')  # 201 bytes
    folder = series(tmp_path / ('d' * 240))
    cut = names(tmp_path / 'n', folder)
    assert len(set(cut)) == 3 and all(len(name.encode()) <= 180 for name in cut)
    assert [name[-2:] for name in cut] == ['xa', 'xb', 'dd']
    assert cut == names(tmp_path / 'n', folder)

  def test_the_channel_of_nnunet_is_no_part_of_a_name(self, tmp_path):
    for name in ('a_0000.nii.gz', 'b_0000.nii', 'c_0000.nii.gz', 'c_0001.nii.gz', 'd_0201.nii'):
      scan(tmp_path / 'imagesTs' / name)
    expected = ['a', 'b', 'c_0000', 'c_0001', 'd_0201']
    assert names(tmp_path / 'imagesTs') == expected
    assert names(*sorted((tmp_path / 'imagesTs').iterdir())) == expected
    assert names(tmp_path / 'imagesTs' / 'c_0000.nii.gz') == ['c_0000']

  def test_series_of_a_cohort(self, tmp_path):
    for number, patient in enumerate(('P1', 'P2')):
      series(tmp_path / patient / 'DICOM', f'1.2.{number}')
    assert names(tmp_path) == ['P1_DICOM', 'P2_DICOM']
    assert names(tmp_path / 'P1' / 'DICOM', tmp_path / 'P2' / 'DICOM') == ['P1_DICOM', 'P2_DICOM']
    assert names(tmp_path / 'P1') == ['P1']

  def test_phases_and_series_of_one_folder(self, tmp_path):
    folder = tmp_path / 'ct'
    for name, number, phase in (('a', 3, 1), ('b', 3, 2), ('c', 4, 1)):

      def change(ds, number=number, phase=phase, name=name):
        ds.SeriesNumber, ds.AcquisitionNumber = number, phase
        ds.SOPInstanceUID = f'{ds.SOPInstanceUID}.{ord(name)}'

      series(folder, f'1.2.{number}', change, f'{name}{{:03d}}')
    cases, notes = find_scans.find_scans([folder])
    assert [case.name for case in cases] == ['ct_s3_a1', 'ct_s3_a2', 'ct_s4']
    assert [case.input for case in cases] == [f'{folder}/{name}000' for name in 'abc']
    assert not notes

  def test_series_that_nothing_but_their_order_tells_apart(self, tmp_path):
    for name, kernel in (('a', 'B 30'), ('b', 'B-30')):

      def change(ds, name=name, kernel=kernel):
        ds.ConvolutionKernel, ds.SOPInstanceUID = kernel, f'{ds.SOPInstanceUID}.{ord(name)}'

      series(tmp_path / 'ct', '1.2', change, f'{name}{{:03d}}')
    assert names(tmp_path / 'ct') == ['ct_1', 'ct_2']


class TestFolders:
  def test_label_maps_and_results_are_no_scans(self, tmp_path, monkeypatch):
    own = formats.Format('own.nii.gz', lambda *_: None, '--own', 'of a project that adds a format')
    monkeypatch.setitem(formats.FORMATS, 'own', own)
    for name in ('s1/ct.nii.gz', 's1/segmentations/liver.nii.gz', 'labelsTr/a.nii.gz',
                 's2/ct.nii.gz', 's2/segmentation.nii.gz', 'done/x_seg.nii.gz', 'my_seg.nii.gz',
                 'done/x_masks/liver.nii.gz', 'done/x_own.nii.gz', 'out/y.nii.gz'):  # fmt: skip
      scan(tmp_path / name)
    layouts.write_files(tmp_path, {'done/x_seg.json': b'{}', 'done/x_preview.png': b'\x89PNG'})
    cases, [note] = find_scans.find_scans([tmp_path], output=tmp_path / 'out')
    assert [case.name for case in cases] == ['my_seg', 's1_ct', 's2_ct']
    for phrase in ('label map (2 folders, 1 file)', 'result of predict (1 folder, 4 files)',
                   'output folder (1 folder)'):  # fmt: skip
      assert phrase in note
    # What is named is read.
    assert names(tmp_path / 's2' / 'segmentation.nii.gz', tmp_path / 'labelsTr') == [
      'segmentation', 'a',
    ]  # fmt: skip

  def test_files_that_cannot_be_read_are_cases(self, tmp_path):
    scan(tmp_path / 'a.nii.gz')
    layouts.write_files(tmp_path, {
      'b.mgz': b'x', 'c.dcm': b'', 'raw/d1.dcm': b'noise', 'raw/d2.dcm': b'',
    })  # fmt: skip
    os.symlink('gone', tmp_path / 'e')
    cases, notes = find_scans.find_scans([tmp_path])
    problems = {case.name: case.problem.removeprefix(str(tmp_path)) for case in cases}
    assert problems.pop('a') == ''
    assert problems == {
      'b.mgz': '/b.mgz: in a format that is not read; convert it to .nii.gz',
      'c.dcm': '/c.dcm: cannot be read, it is empty; copy it again',
      'e': '/e: a link to gone, which is not there; get that file',
      'raw': '/raw/d1.dcm: cannot be read as DICOM; copy it again (and 1 more)',
    }
    assert not notes
    with pytest.raises(find_scans.ScanError, match=r'nowhere: no such file'):
      find_scans.find_scans([tmp_path / 'nowhere'])
    [case], _ = find_scans.find_scans([tmp_path / 'e'])
    assert 'a link to gone' in case.problem

  def test_an_archive_without_scans_is_left_out_unless_it_is_named(self, tmp_path):
    scan(tmp_path / 'a.nii')
    layouts.write_zip(tmp_path / 'code.zip', {'main.c': b'int main;'})
    layouts.write_zip(tmp_path / 'packed.zip', {'scan.nii': b'x'})
    cases, notes = find_scans.find_scans([tmp_path])
    assert [(case.name, bool(case.problem)) for case in cases] == [('a', False), ('packed', True)]
    assert 'no DICOM CT series in it but NIfTI (1 file)' in cases[1].problem
    assert notes == [f'{tmp_path}: left out code.zip (archive without CT)']
    [case], _ = find_scans.find_scans([tmp_path / 'code.zip'])
    assert 'no DICOM CT series in it but text (1 file)' in case.problem

  def test_names_with_a_slash_in_front_stay_in_the_output(self, tmp_path):
    content = {
      f'/{folder}/{name}': data
      for folder, uid in (('A', '1.2'), ('B', '1.3'))
      for name, data in layouts.dicom_files(layouts.body([1])[0], 'i{:03d}', series=uid).items()
    }
    layouts.write_zip(tmp_path / 'study.zip', content)
    cases, _ = find_scans.find_scans([tmp_path / 'study.zip'])
    assert [case.name for case in cases] == ['A', 'B']

  def test_nothing_to_segment_says_what_is_there(self, tmp_path):
    layouts.write_files(tmp_path, {'notes.txt': b'x', 'preview.png': b'x'})
    with pytest.raises(find_scans.ScanError, match=r'but picture \(1 file\), text \(1 file\)'):
      find_scans.find_scans([tmp_path])


class TestOnce:
  def test_a_folder_and_its_archive_are_one_scan(self, tmp_path):
    folder = series(tmp_path / 'ct')
    shutil.make_archive(str(folder), 'zip', folder)
    [case], [note] = find_scans.find_scans([folder, tmp_path / 'ct.zip'])
    assert (case.name, case.problem, case.path) == ('ct', '', folder)
    assert note == f'{tmp_path}/ct.zip: left out, it is the same scan as {folder}'

  @pytest.mark.parametrize('kind', ['nifti', 'dicom'])
  def test_a_folder_and_one_in_it(self, tmp_path, kind):
    inner = tmp_path / 'all' / 'inner'
    places = [series(inner)] if kind == 'dicom' else [scan(inner / f'{n}.nii') for n in 'ab']
    cases, notes = find_scans.find_scans([tmp_path / 'all', inner, inner])
    assert len(cases) == len(places)
    given = ', '.join(map(str, places))
    told = 'given more than once, as in a folder and in one above it; counts once'
    assert notes == [f'{given}: {told}']

  def test_scans_that_share_identifiers_only_are_two(self, tmp_path):
    first = series(tmp_path / 'p1' / 'ct')
    second = series(tmp_path / 'p2' / 'ct', changes=lambda ds: setattr(ds, 'PatientID', 'other'))
    assert names(first, second) == ['p1_ct', 'p2_ct']
    shutil.make_archive(str(first), 'zip', second)
    cases, _ = find_scans.find_scans([first, tmp_path / 'p1' / 'ct.zip'])
    problem = 'ct and ct.zip would both be written as ct_seg; rename one'
    assert [case.problem for case in cases] == [problem, problem]

  def test_a_file_that_is_named_twice(self, tmp_path):
    path = scan(tmp_path / 'a.nii')
    os.symlink('a.nii', tmp_path / 'b.nii')
    assert names(path, tmp_path, path) == ['a', 'b']


def test_a_scan_in_two_files_is_one(tmp_path):
  image = nib.Nifti1Pair(np.zeros(SHAPE, np.int16), np.diag([3, 3, 3, 1]))
  nib.save(image, tmp_path / 'a.hdr')
  [case], _ = find_scans.find_scans([tmp_path])
  assert find_scans.read(case).volume.array.shape == SHAPE
  sizes = [len(stream.read()) for stream in find_scans.open_files(case)]
  assert sizes == [(tmp_path / name).stat().st_size for name in ('a.hdr', 'a.img')]


def test_a_named_file_of_another_kind_is_told_by_its_kind(tmp_path):
  (tmp_path / 'notes.txt').write_text('no scan')
  (tmp_path / 'picture.png').write_bytes(b'\x89PNG\r\n')
  for name, kind in (('notes.txt', 'text'), ('picture.png', 'picture')):
    [one], _ = find_scans.find_scans([tmp_path / name])
    with pytest.raises(UserError, match=rf'{name}: is no scan \({kind}\); expected NIfTI'):
      find_scans.read(one)
