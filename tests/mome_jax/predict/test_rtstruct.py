"""RT Structure Sets: contours that give the masks back, and what the standard asks for."""

import json
import pathlib

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path
from scipy.spatial.transform import Rotation
from threshold import Threshold, save_scan

from input_pipeline.anatomy import TEMPLATE
from mome_jax import predict
from mome_jax.pictures.colours import palette
from mome_jax.predict import rtstruct
from mome_jax.predict.request import Options, Target
from tests.mome_jax.predict.test_dicom import Nested, complete
from tests.mome_jax.predict.test_dicom_seg import change, no_frame

RT = Options(preview=False, rtstruct=True, masks=True)
STANDARD = pathlib.Path(highdicom.__file__).parent / '_standard'  # tables of PS3.3


def run(tmp_path, model=None, prompts=('liver',), **keywords):
  keywords = {'options': RT, 'progress': False} | keywords
  return predict.predict(
    model or Threshold(), [tmp_path / 'ct'], tmp_path / 'out', prompts, **keywords
  )


def tilt(number, ds):
  x, y, z = map(float, ds.ImagePositionPatient)
  ds.ImagePositionPatient = [x, round(y + 0.3 * z, 4), z]


def fill(written, headers):
  """ROI name -> (slices, rows, columns) bool: matplotlib's even-odd rule, through the patient."""
  names = {roi.ROINumber: roi.ROIName for roi in written.StructureSetROISequence}
  uids = [ds.SOPInstanceUID for ds in headers]
  masks = {}
  for roi in written.ROIContourSequence:
    mask = np.zeros((len(headers), headers[0].Rows, headers[0].Columns), bool)
    for contour in roi.ContourSequence:
      k = uids.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
      ds = headers[k]
      points = np.array(contour.ContourData, float).reshape(-1, 3)
      assert len(points) == contour.NumberOfContourPoints
      across, down = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
      away = points - np.array(ds.ImagePositionPatient, float)
      np.testing.assert_allclose(away @ np.cross(across, down), 0, atol=2e-3)  # in its plane
      ring = np.stack([away @ across, away @ down], -1)
      rows, columns = np.mgrid[: ds.Rows, : ds.Columns]
      height, width = map(float, ds.PixelSpacing)
      centres = np.stack([columns.ravel() * width, rows.ravel() * height], -1)
      path = Path(np.vstack([ring, ring[:1]]), closed=True)
      mask[k] ^= path.contains_points(centres).reshape(rows.shape)
    masks[names[roi.ReferencedROINumber]] = mask
  return masks


@pytest.mark.parametrize('kind', ['axial', 'oblique', 'tilted'])
@pytest.mark.filterwarnings('ignore:.*(tilted|right angles)')
def test_contours_give_the_masks_back(kind, tmp_path):
  headers = complete(
    tmp_path / 'ct', Rotation.random(random_state=3) if kind == 'oblique' else None
  )
  if kind == 'tilted':
    change(tmp_path / 'ct', tilt)
    headers = [pydicom.dcmread(tmp_path / 'ct' / f'i{int(ds.InstanceNumber):03d}.dcm')
               for ds in headers]  # fmt: skip
  [result] = run(tmp_path, Nested(), ('liver', 'liver tumor'))
  assert result.status == 'ok', result.message
  masks = fill(pydicom.dcmread(tmp_path / 'out' / 'ct_rtstruct.dcm'), headers)
  assert list(masks) == ['liver', 'liver tumor']  # the organ holds its tumor
  for name, mask in masks.items():
    image = nib.load(tmp_path / 'out' / 'ct_masks' / f'{name.replace(" ", "_")}.nii.gz')
    expected = np.asarray(image.dataobj).astype(bool)
    assert mask.sum() == expected.sum() > 0
    inverse = np.linalg.inv(image.affine)
    for ds, plane in zip(headers, mask, strict=True):
      x, y, z = map(float, ds.ImagePositionPatient)
      k = round(float((inverse @ [-x, -y, z, 1])[2]))
      np.testing.assert_array_equal(plane, expected[..., k].T)


def check(dataset, table, path=()):
  """Keywords of type 1 and 2 that are missing, or of type 1 and empty, at any depth."""
  faults = []
  for attribute in table:
    if tuple(attribute['path']) != path or attribute['type'] not in ('1', '2'):
      continue
    keyword = attribute['keyword']
    if keyword not in dataset:
      faults.append('.'.join((*path, keyword)))
    elif attribute['type'] == '1' and dataset[keyword].value in (None, ''):
      faults.append('.'.join((*path, keyword)) + ' empty')
  for element in dataset:
    if element.VR == 'SQ':
      for item in element.value:
        faults += check(item, table, (*path, element.keyword))
  return faults


def modules():
  """The attributes of the modules of an RT Structure Set that are mandatory."""
  read = lambda name: json.loads((STANDARD / f'{name}.json').read_text())
  kinds, attributes = read('iod_module_map'), read('module_attribute_map')
  names = [m['key'] for m in kinds['rt-structure-set'] if m['usage'] == 'M']
  assert {'patient', 'structure-set', 'roi-contour', 'rt-roi-observations'} <= set(names)
  return [attribute for name in [*names, 'approval', 'frame-of-reference']
          for attribute in attributes[name]]  # fmt: skip


def test_it_holds_what_the_standard_asks_for(tmp_path):
  source = complete(tmp_path / 'ct')[0]
  run(tmp_path, Nested(), ('liver', 'liver tumor'))
  written = pydicom.dcmread(tmp_path / 'out' / 'ct_rtstruct.dcm')
  assert check(written, modules()) == []
  del written.StructureSetROISequence[0].ROINumber
  written.StructureSetLabel = ''
  assert len(check(written, modules())) == 2  # the check can fail
  for field in ('PatientID', 'StudyInstanceUID', 'FrameOfReferenceUID', 'StudyDate'):
    assert written[field].value == source[field].value
  assert written.Modality == 'RTSTRUCT'
  assert written.file_meta.TransferSyntaxUID == pydicom.uid.ImplicitVRLittleEndian
  assert written.SeriesInstanceUID != source.SeriesInstanceUID
  [frame] = written.ReferencedFrameOfReferenceSequence
  [series] = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
  assert series.SeriesInstanceUID == source.SeriesInstanceUID
  assert len(series.ContourImageSequence) == len(list((tmp_path / 'ct').iterdir()))
  kinds = [o.RTROIInterpretedType for o in written.RTROIObservationsSequence]
  assert kinds == ['ORGAN', 'GTV']
  colours = palette(['liver', 'liver tumor']).values()
  for roi, rgb in zip(written.ROIContourSequence, colours, strict=True):
    np.testing.assert_allclose(roi.ROIDisplayColor, 255 * np.array(rgb), atol=0.5)
  texts = [written.SeriesDescription, written.StructureSetDescription,
           *(o.ROIObservationDescription for o in written.RTROIObservationsSequence)]  # fmt: skip
  assert all('not for clinical use' in text and 'MoME-JAX' in text for text in texts)
  assert written.ApprovalStatus == 'UNAPPROVED'


@pytest.mark.parametrize(
  ('name', 'taken_as', 'kind'),
  [
    ('left parotid', 'class', 'ORGAN'), ('kidney tumor', 'class', 'GTV'),
    ('kidney cyst', 'class', 'ORGAN'), ('ptv70', 'class', 'PTV'), ('the gtv', 'free', 'GTV'),
    ('the thing on top', 'free', ''), ('adaptvision', 'class', 'ORGAN'),
  ],
)  # fmt: skip
def test_what_radiotherapy_takes_a_class_for(name, taken_as, kind):
  assert rtstruct.interpreted_type(Target(1, name, name, name, taken_as)) == kind


def test_free_prompts_overlap_and_have_rois_of_their_own(tmp_path):
  headers = complete(tmp_path / 'ct', SpecificCharacterSet='ISO_IR 100')

  def everything(logits):
    last = np.arange(logits.shape[1]) == logits.shape[1] - 1
    return np.where(last[:, None, None, None], 1.0, logits)

  [result] = run(tmp_path, Threshold(everything), ('liver', '肝臓'), force=True)
  assert result.status == 'ok', result.message
  masks = fill(pydicom.dcmread(tmp_path / 'out' / 'ct_rtstruct.dcm'), headers)
  assert list(masks) == ['liver', '肝臓']
  assert (masks['肝臓'] & masks['liver']).sum() == masks['liver'].sum() > 0


def test_only_of_dicom(tmp_path):
  save_scan(tmp_path / 'a.nii')
  with pytest.raises(predict.PredictError, match=r'a\.nii: is not DICOM; --rtstruct needs the'):
    predict.predict(Threshold(), [tmp_path / 'a.nii'], tmp_path / 'out', ['liver'], options=RT)


def test_a_series_without_a_frame_of_reference(tmp_path):
  complete(tmp_path / 'ct')
  change(tmp_path / 'ct', no_frame)
  [result] = run(tmp_path, options=Options(preview=False, rtstruct=True, dicom_seg=True))
  assert result.status == 'incomplete'
  assert set(result.missing) == {'ct_rtstruct.dcm', 'ct_seg.dcm'}
  assert 'the series has no FrameOfReferenceUID' in result.missing['ct_rtstruct.dcm']


def test_a_class_without_a_voxel_has_no_roi(tmp_path):
  complete(tmp_path / 'ct')
  run(tmp_path, prompts=('liver', 'spleen'))
  written = pydicom.dcmread(tmp_path / 'out' / 'ct_rtstruct.dcm')
  assert [roi.ROIName for roi in written.StructureSetROISequence] == ['liver']
  assert TEMPLATE.get('spleen').name in (tmp_path / 'out' / 'volumes.csv').read_text()
