"""DICOM in and out: cases, geometry, DICOM SEG, bad series."""

import io
import json

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from ml_collections import ConfigDict
from pydicom import uid
from scipy.spatial.transform import Rotation
from threshold import Threshold

from input_pipeline.anatomy import TEMPLATE
from mome_jax import predict
from mome_jax.predict import find_scans
from mome_jax.predict.request import Options
from tests.input_pipeline.sources import layouts

SEG = Options(preview=False, dicom_seg=True)


class Nested(Threshold):
  """Over 0 HU is liver, over 200 HU its tumor."""

  config = ConfigDict({'classes': ('liver', 'liver tumor'), 'experimental': ()})

  def __init__(self):
    super().__init__(lambda logits: np.stack([logits[:, 0], logits[:, 0] - 8], 1))


def complete(folder, rotation=None, number=3, **changes):
  """A CT series with every field that real ones have; returns the datasets."""
  folder.mkdir(parents=True, exist_ok=True)
  image = layouts.body([1])[0].copy()
  image[4:9, 4:9, 3:8] = 400
  made = []
  for name, data in layouts.dicom_files(image, 'i{:03d}.dcm', series=f'1.2.{number}').items():
    ds = pydicom.dcmread(io.BytesIO(data))
    ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.SeriesNumber = '1.2', '1.2.77', number
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = 'p', 'A^B', '', ''
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = '1', '20200101', '100000', ''
    ds.ReferringPhysicianName = ''
    if rotation is not None:
      rows, columns, normal = rotation.as_matrix().T
      ds.ImageOrientationPatient = [round(float(v), 8) for v in (*rows, *columns)]
      height = float(ds.ImagePositionPatient[2])
      place = np.array([-100, -50, 7]) + height * normal
      ds.ImagePositionPatient = [round(float(v), 6) for v in place]
    for field, value in changes.items():
      setattr(ds, field, value)
    ds.save_as(folder / name)
    made.append(ds)
  return made


@pytest.mark.parametrize('seed', range(4))
def test_a_dicom_seg_lies_on_its_series_voxel_for_voxel(seed, tmp_path):
  rotation = Rotation.random(random_state=seed) if seed else None
  datasets = complete(tmp_path / 'ct', rotation)
  out = tmp_path / 'out'
  [result] = predict.predict(
    Nested(), [tmp_path / 'ct'], out, ['liver', 'liver tumor'], options=SEG, progress=False
  )
  assert result.status == 'ok', result.message
  seg = highdicom.seg.segread(out / 'ct_seg.dcm')
  assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == ['liver', 'liver tumor']
  by_position = seg.get_pixels_by_source_instance(
    [ds.SOPInstanceUID for ds in datasets],
    ignore_spatial_locations=False,
    assert_missing_frames_are_empty=True,
  )  # (slices, rows, columns, segments)
  mask = nib.load(out / 'ct_seg.nii.gz')
  labels = np.asarray(mask.dataobj)
  tumor = TEMPLATE.get('liver tumor').index
  assert 0 < (labels == tumor).sum() < (labels > 0).sum()
  inverse = np.linalg.inv(mask.affine)
  for ds, frames in zip(datasets, by_position, strict=True):
    # World place of the slice's first voxel -> its index in the NIfTI file, whose own axes are
    # (column, row, slice).
    x, y, z = map(float, ds.ImagePositionPatient)
    index = inverse @ [-x, -y, z, 1]
    np.testing.assert_allclose(index[:2], 0, atol=1e-3)
    plane = labels[..., round(float(index[2]))].T
    np.testing.assert_array_equal(frames[..., 0], plane > 0)  # the organ holds its tumor
    np.testing.assert_array_equal(frames[..., 1], plane == tumor)
  rows = json.loads((out / 'ct_seg.json').read_text())['labels']
  voxel = np.prod(layouts.SPACING) / 1000
  for row, count in zip(rows, by_position.sum((0, 1, 2)), strict=True):
    assert row['volume_ml'] == pytest.approx(count * voxel, abs=1e-3)
  assert rows[1]['mean_hu'] > 200


def test_segments_are_coded():
  from mome_jax.predict import dicom_seg

  algorithm = highdicom.AlgorithmIdentificationSequence(
    'x', highdicom.sr.CodedConcept('123109', 'DCM', 'Manual Processing'), '1'
  )
  left = dicom_seg._describe(1, 'left kidney', 'left kidney', (1, 1, 1), algorithm, '')
  kind = left.SegmentedPropertyTypeCodeSequence[0]
  assert kind.CodeValue == '64033007'
  assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == 'Left'
  tumor = dicom_seg._describe(1, 'liver tumor', 'liver tumor', (1, 0, 0), algorithm, '')
  assert tumor.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == 'Neoplasm'
  assert tumor.AnatomicRegionSequence[0].CodeValue == '10200004'


def test_cases_of_a_study(tmp_path):
  study = tmp_path / 'study'
  complete(study / 'thin')
  complete(study / 'thick', number=4)
  for name in ('scout', 'dose', 'mr'):
    complete(study / name, number=9)
  for name, changes in {
    'scout': {'ImageType': ['ORIGINAL', 'PRIMARY', 'LOCALIZER'], 'SeriesInstanceUID': '1.3.1'},
    'mr': {'Modality': 'MR', 'SeriesInstanceUID': '1.3.2'},
    'dose': {'SOPClassUID': uid.SecondaryCaptureImageStorage, 'SeriesInstanceUID': '1.3.3'},
  }.items():
    for path in sorted((study / name).iterdir())[2:]:
      path.unlink()
    for path in (study / name).iterdir():
      ds = pydicom.dcmread(path)
      for field, value in changes.items():
        setattr(ds, field, value)
      if name == 'dose':
        del ds.ImagePositionPatient
      ds.save_as(path)
  bolus = complete(study / 'bolus', number=7)
  for path in sorted((study / 'bolus').iterdir()):
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient = bolus[0].ImagePositionPatient
    ds.save_as(path)
  cases, [note] = find_scans.find_scans([study])
  assert [case.name for case in cases] == ['thin', 'thick']
  for word in ('MR (2 files)', 'localizer (2 files)', 'screen capture (2 files)', 'series 7'):
    assert word in note
  results = predict.predict(Threshold(), [study], tmp_path / 'out', options=Options(preview=False),
                            progress=False)  # fmt: skip
  assert [(result.case, result.status) for result in results] == [('thin', 'ok'), ('thick', 'ok')]
  assert json.loads((tmp_path / 'out' / 'manifest.json').read_text())['notes'] == [note]


def test_bad_series_are_rows_with_one_line(tmp_path):
  folder = tmp_path / 'in'
  for name in ('missing', 'doubled', 'compressed', 'shifted', 'mixed', 'cut'):
    complete(folder / name)
  (folder / 'missing' / 'i004.dcm').unlink()
  other = pydicom.dcmread(folder / 'doubled' / 'i004.dcm')
  other.PixelData = bytes(len(other.PixelData))
  other.save_as(folder / 'doubled' / 'copy.dcm')
  content = (folder / 'cut' / 'i004.dcm').read_bytes()
  (folder / 'cut' / 'i004.dcm').write_bytes(content[: len(content) - 300])
  for name in ('compressed', 'shifted', 'mixed'):
    path = folder / name / 'i004.dcm'
    ds = pydicom.dcmread(path)
    if name == 'shifted':
      ds.ImagePositionPatient[0] += 20
    elif name == 'mixed':
      ds.PixelSpacing = [1, 1]
    else:
      ds.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
      ds.PixelData = pydicom.encaps.encapsulate([b'\xff\xd8no image\xff\xd9'])
      ds['PixelData'].is_undefined_length = True
    ds.save_as(path)
  (folder / 'rt').mkdir()
  rt = pydicom.dcmread(folder / 'missing' / 'i003.dcm')
  del rt.PixelData
  rt.Modality = 'RTSTRUCT'
  rt.save_as(folder / 'rt' / 'rt.dcm')
  expected = {
    'missing': 'slices between them are missing: export the series again',
    'doubled': 'lie at the same place and differ',
    'compressed': 'JPEG Lossless',
    'shifted': 'is shifted by 20.0 mm within its plane',
    'mixed': 'i004.dcm: other pixel spacing than i000.dcm ([1.0, 1.0], not [8.0, 8.0])',
    'cut': 'pixels cannot be decoded',
  }
  results = predict.predict(Threshold(), [folder / name for name in expected], tmp_path / 'out',
                            options=Options(preview=False), progress=False)  # fmt: skip
  assert [result.case for result in results] == list(expected)
  for result in results:
    assert result.status == 'failed'
    assert expected[result.case] in result.message
    assert str(folder / result.case) in result.message
    assert '\n' not in result.message
  assert 'pip install pylibjpeg' in results[2].message
  with pytest.raises(
    find_scans.ScanError,
    match=r'no DICOM CT series at any depth, nor NRRD or MetaImage but RTSTRUCT',
  ):
    find_scans.find_scans([folder / 'rt'])
  layouts.write_zip(tmp_path / 'rt.zip', {'rt.dcm': (folder / 'rt' / 'rt.dcm').read_bytes()})
  (tmp_path / 'bad.zip').write_bytes(b'PK')
  for name, message in {'rt': 'but RTSTRUCT (1 file)', 'bad': 'nor a zip archive'}.items():
    [result] = predict.predict(Threshold(), [tmp_path / f'{name}.zip'], tmp_path / 'out',
                               progress=False)  # fmt: skip
    assert message in result.message


def test_a_tilted_gantry_is_noted(tmp_path):
  complete(tmp_path / 'ct')
  for path in (tmp_path / 'ct').iterdir():
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient[1] += np.round(np.tan(np.radians(10)) * ds.ImagePositionPatient[2], 6)
    ds.save_as(path)
  [result] = predict.predict(Threshold(), [tmp_path / 'ct'], tmp_path / 'out', options=SEG,
                             progress=False)  # fmt: skip
  assert result.status == 'ok', result.message
  assert 'the gantry is tilted by 10.0 degrees' in result.message
  mask = np.asarray(nib.load(tmp_path / 'out' / 'ct_seg.nii.gz').dataobj)
  volume = mask.astype(bool).sum() * np.prod(layouts.SPACING) / 1000
  assert result.labels[0]['volume_ml'] == pytest.approx(volume, abs=0.01)


def test_dicom_seg_needs_dicom(tmp_path):
  nib.save(
    nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.diag([3, 3, 3, 1])), tmp_path / 'a.nii'
  )
  with pytest.raises(predict.PredictError, match=r'a\.nii: is not DICOM; --dicom-seg needs'):
    predict.predict(Threshold(), [tmp_path / 'a.nii'], tmp_path / 'out', options=SEG)


def test_skip_done_keeps_only_what_the_same_request_made(tmp_path):
  complete(tmp_path / 'ct')

  def call(prompts, *, options=Options(preview=False), **keywords):  # noqa: B008
    where = [tmp_path / 'ct'], tmp_path / 'out'
    return predict.predict(
      Threshold(), *where, prompts, options=options, progress=False, **keywords
    )

  [first] = call(['liver'])
  [again] = call(['liver'], existing='skip')
  assert again.status == 'skipped'
  assert list(again.labels) == list(first.labels)
  [more] = call(['liver'], existing='skip', options=Options(preview=False, masks=True))
  assert more.status == 'ok'  # its masks were not there
  assert (tmp_path / 'out' / 'ct_masks' / 'liver.nii.gz').is_file()
  [other] = call(['spleen'], existing='skip')
  assert other.status == 'failed'
  assert 'ct_seg.json: made with other prompts; pass --overwrite' in other.message
  with pytest.raises(predict.PredictError, match='results of an earlier run; pass --overwrite'):
    call(['liver'])
  [replaced] = call(['spleen'], existing='overwrite')
  assert replaced.status == 'ok'
