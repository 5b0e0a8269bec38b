"""Segments of a DICOM SEG as the ROIs of a patient."""

import pathlib
import re

import highdicom
import numpy as np
import pydicom
import pytest
import structure_sets
from structure_sets import series, structures

from input_pipeline.errors import UserError
from tests.input_pipeline.sources.test_rtstruct_folder import boxed, declare, listed, load, voxels

ROOT = pathlib.Path(__file__).parents[3]
PATIENT = (
  'PatientID PatientName PatientBirthDate PatientSex StudyID StudyDate StudyTime '
  'AccessionNumber ReferringPhysicianName'
)


def write_seg(folder, number, masks, **changes):
  """A SEG by highdicom of the series in a folder; masks are (columns, rows, slices)."""
  series_files = sorted(folder.glob('ct*.dcm'), reverse=True)  # numbered from the head down
  images = [pydicom.dcmread(path) for path in series_files]
  for image in images:
    for field in PATIENT.split():
      setattr(image, field, '')
    image.SliceThickness = 6
  code = highdicom.sr.CodedConcept('123037004', 'SCT', 'Body structure')
  seg = highdicom.seg.Segmentation(
    source_images=images,
    pixel_array=np.stack([mask.T for mask in masks.values()], -1),
    segmentation_type=changes.pop('kind', 'BINARY'),
    segment_descriptions=[
      highdicom.seg.SegmentDescription(k, name, code, code, 'MANUAL')
      for k, name in enumerate(masks, 1)
    ],
    series_instance_uid=highdicom.UID(), series_number=9, sop_instance_uid=highdicom.UID(),
    instance_number=1, manufacturer='x', manufacturer_model_name='x', software_versions='1',
    device_serial_number='1', **changes,
  )  # fmt: skip
  seg.save_as(folder / f'seg{number}.dcm')


@pytest.mark.parametrize('every_frame', [False, True])  # those without voxels too
@pytest.mark.parametrize('kind', ['BINARY', 'FRACTIONAL'])
def test_segments_of_a_dicom_seg_are_rois(kind, every_frame, tmp_path):
  series(tmp_path / 'p1')
  cord, parotid = boxed((11, 12), (9, 11), (2, 7)), boxed((2, 6), (4, 8), (4, 6))
  masks = {'SpinalCord': cord, 'Parotid_R': parotid, 'thing': parotid}
  if every_frame:
    masks['Parotid_L'] = np.zeros_like(cord)
  write_seg(tmp_path / 'p1', 1, masks, kind=kind, omit_empty_frames=not every_frame)
  declare(tmp_path, partial=['spinal cord'])
  cases, notes = listed(tmp_path)
  assert notes == ['rtstruct_folder: ROIs that stand for no class, with patients: thing (1)']
  assert cases['p1'].supervised == ('spinal cord', 'right parotid')
  assert cases['p1'].slice_ranges == {'spinal cord': (pytest.approx(9), pytest.approx(45))}
  scan, told = load(cases['p1'])
  np.testing.assert_array_equal(voxels(scan, 'spinal cord'), cord)
  np.testing.assert_array_equal(voxels(scan, 'right parotid'), parotid)
  assert not told


def test_a_seg_without_all_its_pixels_costs_its_patient(tmp_path):
  series(tmp_path / 'p1')
  write_seg(tmp_path / 'p1', 1, {'SpinalCord': boxed((11, 12), (9, 11), (2, 7))})
  path = tmp_path / 'p1' / 'seg1.dcm'
  broken = pydicom.dcmread(path)
  broken.PixelData = broken.PixelData[:20]
  broken.save_as(path)
  cases, _ = listed(tmp_path)
  with pytest.raises(UserError, match=r'p1/seg1\.dcm: damaged structure set .*; copy it again'):
    load(cases['p1'])


def test_a_seg_of_another_kind_is_named(tmp_path):
  series(tmp_path / 'p1')
  write_seg(tmp_path / 'p1', 1, {'SpinalCord': boxed((11, 12), (9, 11), (2, 7))})
  seg = pydicom.dcmread(tmp_path / 'p1' / 'seg1.dcm')
  seg.SegmentationType = 'LABELMAP'
  seg.save_as(tmp_path / 'p1' / 'seg1.dcm')
  [case] = listed(tmp_path)[0].values()
  with pytest.raises(UserError, match=r'seg1\.dcm: a SEG of type LABELMAP; export it as BINARY'):
    case.load()


@pytest.mark.parametrize(
  'field', ['Rows', 'ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing']
)
def test_a_seg_on_another_grid(field, tmp_path):
  series(tmp_path / 'p1')
  write_seg(tmp_path / 'p1', 1, {'SpinalCord': boxed((11, 12), (9, 11), (2, 7))})
  seg = pydicom.dcmread(tmp_path / 'p1' / 'seg1.dcm')
  shared = seg.SharedFunctionalGroupsSequence[0]
  if field == 'Rows':
    seg.Rows, seg.Columns = seg.Columns, seg.Rows
  elif field == 'ImageOrientationPatient':
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
  elif field == 'PixelSpacing':  # of another reconstruction, that begins at the same place
    shared.PixelMeasuresSequence[0].PixelSpacing = [5, 5]
  else:
    place = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    place.ImagePositionPatient = [-96, -50, 12]
  seg.save_as(tmp_path / 'p1' / 'seg1.dcm')
  with pytest.raises(UserError, match='lies on another grid than its series'):
    listed(tmp_path)[0]['p1'].load()


# SNOMED CT and, in older files, SNOMED RT.
LEFT_CODES = [('7771000', 'SCT', 'Left'), ('G-A101', 'SRT', 'Left')]


def code_sides(path, sides):
  """Gives segments, by number, the code of a side; None gives none."""
  seg = pydicom.dcmread(path)
  for number, side in sides.items():
    kind = seg.SegmentSequence[number - 1].SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence = [highdicom.sr.CodedConcept(*side)]
  seg.save_as(path)


@pytest.mark.parametrize('code', LEFT_CODES)
def test_a_lung_that_its_code_alone_calls_left_says_nothing_of_the_right_one(code, tmp_path):
  series(tmp_path / 'p1')
  here = boxed((17, 21), (4, 8), (4, 6))
  write_seg(tmp_path / 'p1', 1, {'Lung': here})
  code_sides(tmp_path / 'p1' / 'seg1.dcm', {1: code})
  cases, _ = listed(tmp_path)
  assert cases['p1'].supervised == ('left lung',)
  np.testing.assert_array_equal(voxels(load(cases['p1'])[0], 'left lung'), here)


def test_segments_of_one_label_are_told_apart_by_the_codes_of_their_sides(tmp_path):
  series(tmp_path / 'p1')
  # Both on one side of the picture, as of a scan that was cut: no middle tells them apart.
  masks = {'Lung': boxed((17, 18), (4, 8), (4, 6)), 'x': boxed((20, 21), (4, 8), (4, 6))}
  write_seg(tmp_path / 'p1', 1, masks)
  path = tmp_path / 'p1' / 'seg1.dcm'
  seg = pydicom.dcmread(path)
  seg.SegmentSequence[1].SegmentLabel = 'Lung'
  seg.save_as(path)
  code_sides(path, {1: ('24028007', 'SCT', 'Right'), 2: LEFT_CODES[0]})
  case = listed(tmp_path)[0]['p1']
  scan, told = load(case)
  np.testing.assert_array_equal(voxels(scan, 'right lung'), masks['Lung'])
  np.testing.assert_array_equal(voxels(scan, 'left lung'), masks['x'])
  assert not told


@pytest.mark.parametrize('pattern', ['Renal', 'renal*'])
def test_rois_and_ignored_know_a_label_without_the_side_of_its_code(pattern, tmp_path):
  series(tmp_path / 'p1')
  names = {'Renal': (17, 21), 'Lung': (2, 6)}
  masks = {name: boxed(columns, (4, 8), (4, 6)) for name, columns in names.items()}
  write_seg(tmp_path / 'p1', 1, masks)
  code_sides(tmp_path / 'p1' / 'seg1.dcm', dict.fromkeys((1, 2), LEFT_CODES[0]))
  declare(tmp_path, rois={'kidney': pattern}, ignored=['lung'])
  cases, notes = listed(tmp_path)
  assert cases['p1'].supervised == ('left kidney',)
  assert not notes
  np.testing.assert_array_equal(voxels(load(cases['p1'])[0], 'left kidney'), masks['Renal'])


@pytest.mark.parametrize(
  'both', [[('51440002', 'SCT', 'Right and left')], [LEFT_CODES[0], ('24028007', 'SCT', 'Right')]]
)
def test_a_label_that_says_its_side_stays_and_both_sides_are_a_pair(both, tmp_path):
  series(tmp_path / 'p1')
  here = boxed((17, 21), (4, 8), (4, 6))
  write_seg(tmp_path / 'p1', 1, {'Parotid_L': here, 'Lung': boxed((2, 6), (4, 8), (4, 6))})
  path = tmp_path / 'p1' / 'seg1.dcm'
  code_sides(path, {1: LEFT_CODES[0]})
  seg = pydicom.dcmread(path)
  kind = seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
  kind.SegmentedPropertyTypeModifierCodeSequence = [
    highdicom.sr.CodedConcept(*code) for code in both
  ]
  seg.save_as(path)
  declare(tmp_path, rois={'left parotid': 'parotid_l'})
  assert listed(tmp_path)[0]['p1'].supervised == ('right lung', 'left lung', 'left parotid')


def test_the_page_reads_an_archive_with_both_kinds(tmp_path):
  page = (ROOT / 'docs' / 'how-to' / 'public-datasets.md').read_text(encoding='utf-8')
  (block,) = re.findall(r'```json\n(.*?)```', page, re.DOTALL)
  (tmp_path / 'dataset.json').write_text(block, encoding='utf-8')
  folder = tmp_path / 'LUNG1-001'
  series(folder)
  here, there = boxed((17, 21), (4, 8), (4, 6)), boxed((2, 6), (4, 8), (4, 6))
  tumor, heart = boxed((18, 19), (5, 6), (4, 6)), boxed((10, 13), (4, 8), (4, 6))
  write_seg(folder, 1, {'Lung': here, 'x': there, 'Neoplasm, Primary': tumor, 'Heart': heart})
  path = folder / '300.000000-Segmentation-9.554' / '1-1.dcm'
  path.parent.mkdir()
  seg = pydicom.dcmread(folder / 'seg1.dcm')
  seg.SegmentSequence[1].SegmentLabel = 'Lung'
  seg.save_as(path)
  (folder / 'seg1.dcm').unlink()
  code_sides(path, {1: LEFT_CODES[0], 2: ('24028007', 'SCT', 'Right')})
  (folder / '0.000000-NA-82046').mkdir()
  contours = {'GTV-1': [structure_sets.box((18, 19), (5, 6), 4)]}
  structures(folder / '0.000000-NA-82046' / '1-1.dcm', contours, date='20300101')
  case = listed(tmp_path)[0]['LUNG1-001']
  assert case.supervised == ('right lung', 'left lung', 'lung tumor', 'heart')
  scan, _ = load(case)
  np.testing.assert_array_equal(voxels(scan, 'left lung'), here)
  np.testing.assert_array_equal(voxels(scan, 'lung tumor'), tumor)


def test_a_seg_of_a_series_with_several_phases_counts_once_one_of_them_is_left(tmp_path):
  folder = tmp_path / 'HCC_002'
  series(folder)
  liver, tumor = boxed((4, 12), (4, 10), (2, 6)), boxed((6, 8), (5, 7), (3, 5))
  write_seg(folder, 1, {'Liver': liver & ~tumor, 'Mass': tumor})
  (tmp_path / 'dataset.json').write_text('{"rois": {"liver tumor": "Mass"}}', encoding='utf-8')
  first = sorted(folder.glob('ct*.dcm'))
  for path in first:
    image = pydicom.dcmread(path)
    image.AcquisitionNumber = 1
    image.save_as(path)
    image.AcquisitionNumber, image.SOPInstanceUID = 2, pydicom.uid.generate_uid()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    pixels = image.pixel_array + 1
    image.PixelData = pixels.astype(image.pixel_array.dtype).tobytes()
    image.save_as(path.with_name(f'late{path.name}'))
  with pytest.raises(UserError, match=r'several series: .* a1 .* a2 .*; keep one in the folder'):
    listed(tmp_path)[0]['HCC_002'].load()
  for path in first:  # those that the SEG refers to
    path.unlink()
  scan, _ = load(listed(tmp_path)[0]['HCC_002'])
  np.testing.assert_array_equal(voxels(scan, 'liver'), liver)
  np.testing.assert_array_equal(voxels(scan, 'liver tumor'), tumor)
