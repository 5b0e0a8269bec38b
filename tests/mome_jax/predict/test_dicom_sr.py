"""Measurements as a DICOM Structured Report."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom import sr
from threshold import Threshold, save_scan

from mome_jax import predict
from mome_jax.plausibility.judge import Judgement, Verdict
from mome_jax.predict import dicom_names, formats, plausible_masks
from mome_jax.predict.request import PredictError
from tests.mome_jax.predict.test_dicom import Nested, complete


def run(tmp_path, *names, prompts=('liver', 'left kidney'), model=None):
  options = formats.make_options(['dicom_sr', *names])
  return predict.predict(
    model or Threshold(), [tmp_path / 'ct'], tmp_path / 'out', prompts,
    options=options, progress=False, force=True, existing='overwrite',
  )  # fmt: skip


def numbers(group):
  """(name, derivation) -> value and unit, by hand from the content tree."""
  values = {}
  for item in group.ContentSequence:
    if item.ValueType == 'NUM':
      inner = [one for one in item.get('ContentSequence', ())
               if one.ConceptNameCodeSequence[0].CodeMeaning == 'Derivation']  # fmt: skip
      how = inner[0].ConceptCodeSequence[0].CodeMeaning if inner else ''
      [value] = item.MeasuredValueSequence
      unit = value.MeasurementUnitsCodeSequence[0].CodeValue
      values[item.ConceptNameCodeSequence[0].CodeMeaning, how] = float(value.NumericValue), unit
  return values


@pytest.mark.parametrize('with_seg', [True, False])
def test_the_report_says_what_was_measured(with_seg, tmp_path):
  headers = complete(tmp_path / 'ct')
  [result] = run(tmp_path, *['dicom_seg'] * with_seg)
  assert result.status == 'ok' and not result.missing, result.message
  path = tmp_path / 'out' / 'ct_sr.dcm'
  read = pydicom.dcmread(path)
  assert read.SOPClassUID == '1.2.840.10008.5.1.4.1.1.88.22' and read.Modality == 'SR'
  assert read.StudyInstanceUID == headers[0].StudyInstanceUID
  assert read.PatientID == headers[0].PatientID
  assert (read.CompletionFlag, read.VerificationFlag) == ('COMPLETE', 'UNVERIFIED')
  report = sr.srread(path).content
  groups = (
    report.get_volumetric_roi_measurement_groups() if with_seg
    else report.get_image_measurement_groups()
  )  # fmt: skip
  [group] = groups  # nothing is said of the kidney, which has no voxel
  assert group.tracking_identifier == 'liver'
  assert group.finding_type.value == '10200004'
  labels = nib.load(tmp_path / 'out' / 'ct_seg.nii.gz')
  mask = np.asarray(labels.dataobj) > 0
  ml = mask.sum() * np.prod(labels.header.get_zooms()) / 1000
  row = next(row for row in result.labels if row['name'] == 'liver')
  assert numbers(group[0]) == {
    ('Volume', ''): (pytest.approx(ml, rel=1e-3), 'mL'),
    ('Attenuation Coefficient', 'Mean'): (row['mean_hu'], "[hnsf'U]"),
    ('Attenuation Coefficient', 'Standard Deviation'): (row['sd_hu'], "[hnsf'U]"),
  }
  if with_seg:
    seg = pydicom.dcmread(tmp_path / 'out' / 'ct_seg.dcm')
    segment = group.referenced_segment
    assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    number = segment.referenced_segment_numbers[0]
    assert seg.SegmentSequence[number - 1].SegmentLabel == 'liver'


@pytest.mark.filterwarnings('ignore:Invalid value')
@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('PatientBirthDate', 'ANON'),
    ('PatientSex', 'female'),
    ('StudyDate', '2020-01-01'),
    ('StudyTime', '10:00:00'),
    ('PatientName', ['A^B', 'C^D']),
  ],
)
def test_a_field_that_anonymising_has_spoilt_is_left_empty(field, value, tmp_path):
  complete(tmp_path / 'ct', **{field: value})
  [result] = run(tmp_path, 'dicom_seg', 'rtstruct')
  assert result.status == 'ok' and not result.missing, result.message
  assert f'{field} ' in result.message and 'left empty' in result.message
  for end in ('seg', 'sr', 'rtstruct'):
    assert not pydicom.dcmread(tmp_path / 'out' / f'ct_{end}.dcm')[field].value


def test_objects_are_of_the_patient_and_the_study_of_their_series(tmp_path):
  method = pydicom.Dataset()
  method.CodeValue, method.CodingSchemeDesignator = '113100', 'DCM'
  method.CodeMeaning = 'Basic Application Confidentiality Profile'
  fields = {
    'SpecificCharacterSet': 'ISO_IR 100',
    'StudyDescription': 'Hals, Kontrastmittel über Port',
    'StudyID': '12',
    'IssuerOfPatientID': 'CLINIC',
    'PatientIdentityRemoved': 'YES',
    'DeidentificationMethod': ['Basic', 'Retain Dates'],
    'DeidentificationMethodCodeSequence': [method],
  }
  [source, *_] = complete(tmp_path / 'ct', **fields)
  [result] = run(tmp_path, 'dicom_seg', 'rtstruct')
  assert result.status == 'ok' and not result.missing, result.message
  for end in ('seg', 'sr', 'rtstruct'):
    written = pydicom.dcmread(tmp_path / 'out' / f'ct_{end}.dcm')
    assert {field: written[field].value for field in fields} == {
      field: source[field].value for field in fields
    }


@pytest.mark.filterwarnings('ignore:Invalid value')
@pytest.mark.parametrize(
  ('number', 'counted'), [(b'7 ', 7), (b'', 0), (b'ANON', 0), (b'1\\2 ', 0), (b'-5000 ', 0)]
)
def test_a_series_needs_no_number(number, counted, tmp_path):
  tag = pydicom.tag.Tag('SeriesNumber')
  for header in complete(tmp_path / 'ct'):
    header[tag] = pydicom.dataelem.RawDataElement(tag, 'IS', len(number), number, 0, False, True)
    header.save_as(tmp_path / 'ct' / f'i{header.InstanceNumber:03d}.dcm')
  [result] = run(tmp_path, 'dicom_seg', 'rtstruct')
  assert result.status == 'ok' and not result.missing, result.message
  for end, first in (('seg', 1000), ('rtstruct', 2000), ('sr', 3000)):
    written = pydicom.dcmread(tmp_path / 'out' / f'ct_{end}.dcm')
    assert written.SeriesNumber == first + counted


def test_a_scan_in_which_nothing_is_found_has_no_dicom_output_and_that_is_told(tmp_path):
  complete(tmp_path / 'ct')
  [result] = run(tmp_path, 'dicom_seg', prompts=['liver'], model=Threshold(lambda x: x * 0 - 1))
  assert result.status == 'ok'
  assert result.message.endswith('ct_seg.dcm, ct_sr.dcm not written: no class has a voxel')


def test_each_of_several_classes_refers_to_its_segment(tmp_path):
  headers = complete(tmp_path / 'ct')
  names = 'liver', 'liver tumor'
  [result] = run(tmp_path, 'dicom_seg', prompts=names, model=Nested())
  assert result.status == 'ok' and not result.missing, result.message
  seg = pydicom.dcmread(tmp_path / 'out' / 'ct_seg.dcm')
  report = sr.srread(tmp_path / 'out' / 'ct_sr.dcm')
  groups = report.content.get_volumetric_roi_measurement_groups()
  for group, name, item in zip(groups, names, seg.SegmentSequence, strict=True):
    segment = group.referenced_segment
    assert group.tracking_identifier == item.SegmentLabel == name
    assert segment.referenced_segment_numbers == [item.SegmentNumber]
    assert segment.source_series_for_segmentation.value == headers[0].SeriesInstanceUID
  uids = {
    instance.ReferencedSOPInstanceUID
    for field in ('CurrentRequestedProcedureEvidenceSequence', 'PertinentOtherEvidenceSequence')
    for study in report.get(field, ())
    for series in study.ReferencedSeriesSequence
    for instance in series.ReferencedSOPSequence
  }
  assert uids == {seg.SOPInstanceUID, *(ds.SOPInstanceUID for ds in headers)}


@pytest.mark.parametrize(
  ('first', 'second'),
  [(['dicom_seg', 'dicom_sr'], ['dicom_seg', 'rtstruct']), (['dicom_seg'], ['dicom_sr'])],
)
def test_a_report_refers_to_the_segments_that_are_there(first, second, tmp_path):
  complete(tmp_path / 'ct')
  for names in (first, second):
    [result] = predict.predict(
      Threshold(), [tmp_path / 'ct'], tmp_path / 'out', ['liver'],
      options=formats.make_options(names), progress=False, existing='skip',
    )  # fmt: skip
    assert result.status == 'ok', result.message
  seg = pydicom.dcmread(tmp_path / 'out' / 'ct_seg.dcm')
  report = sr.srread(tmp_path / 'out' / 'ct_sr.dcm').content
  [group] = report.get_volumetric_roi_measurement_groups()
  assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID


@pytest.mark.parametrize('foreign', [True, False])
def test_what_speaks_against_masks_is_in_every_object(foreign, tmp_path, monkeypatch):
  complete(tmp_path / 'ct')
  verdict = Verdict(False, ('100 ml, 5 to 20 in training',))
  judgement = Judgement({'liver': verdict}, foreign, ('body too small',) * foreign)
  monkeypatch.setattr(plausible_masks, 'judge_masks', lambda *_: judgement)
  [result] = run(tmp_path, 'dicom_seg', 'rtstruct', prompts=['liver'])
  assert result.status == 'ok' and not result.missing, result.message
  read = {end: pydicom.dcmread(tmp_path / 'out' / f'ct_{end}.dcm')
          for end in ('seg', 'rtstruct', 'sr')}  # fmt: skip
  doubt = 'IMPLAUSIBLE, do not trust: 100 ml, 5 to 20 in training'
  assert read['seg'].SegmentSequence[0].SegmentDescription == doubt
  assert read['rtstruct'].StructureSetROISequence[0].ROIDescription == doubt
  [group] = sr.srread(
    tmp_path / 'out' / 'ct_sr.dcm'
  ).content.get_volumetric_roi_measurement_groups()
  values = [evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()]
  assert values.count('IMPLAUSIBLE, do not trust') == 1
  for one in read.values():
    assert len(one.SeriesDescription) <= 64
    assert ('UNLIKE THE TRAINING SCANS' in one.SeriesDescription) == foreign
  assert ('UNLIKE' in read['rtstruct'].StructureSetDescription) == foreign


def test_names_that_are_cut_alike_refer_to_their_own_segments(tmp_path):
  complete(tmp_path / 'ct')
  names = [f'{"a word that nobody would call an organ " * 2}{end}' for end in 'xy']
  model = Threshold(lambda logits: np.repeat(logits[:, :1], logits.shape[1], 1))
  [result] = run(tmp_path, 'dicom_seg', prompts=names, model=model)
  assert result.status == 'ok' and not result.missing, result.message
  report = sr.srread(tmp_path / 'out' / 'ct_sr.dcm')
  groups = report.content.get_volumetric_roi_measurement_groups()
  assert [group.referenced_segment.referenced_segment_numbers for group in groups] == [[1], [2]]


def test_nifti_is_refused_and_a_series_without_uids_told(tmp_path):
  save_scan(tmp_path / 'ct.nii.gz')
  with pytest.raises(PredictError, match='--dicom-sr needs the headers'):
    predict.predict(Threshold(), [tmp_path / 'ct.nii.gz'], tmp_path / 'out',
                    options=formats.make_options(['dicom_sr']))  # fmt: skip


def test_codes_of_a_side_and_of_a_lesion():
  kidney, tumor = dicom_names.coded('left kidney'), dicom_names.coded('liver tumor')
  assert (kidney.type.meaning, kidney.side.meaning, kidney.site) == ('Kidney', 'Left', None)
  assert (tumor.type.meaning, tumor.site.meaning, tumor.side) == ('Neoplasm', 'Liver', None)


@pytest.mark.parametrize(('codes', 'name', 'expected'), [
  (['', 'ISO 2022 IR 87'], 'Yamada^Tarou=山田^太郎=やまだ^たろう', 'ISO_IR 192'),
  (['', 'ISO 2022 IR 149'], 'Hong^Gildong=洪^吉洞=홍^길동', 'ISO_IR 192'),
  ('', 'Doe^Jane', None),
  ('ISO_IR 6', 'Doe^Jane', 'ISO_IR 192'),
  ('ISO_IR_100', 'Doe^Jane', 'ISO_IR 192'),
  ('ISO_IR 100', 'Müller^Jörg', 'ISO_IR 100'),
])  # fmt: skip
@pytest.mark.filterwarnings('ignore')  # pydicom tells of codes that are none
def test_names_of_patients_in_any_character_set(codes, name, expected, tmp_path):
  complete(tmp_path / 'ct', SpecificCharacterSet=codes, PatientName=name)
  [result] = run(tmp_path, 'dicom_seg', 'rtstruct')
  assert result.status == 'ok' and not result.missing, result.message
  for end in ('seg', 'sr', 'rtstruct'):
    written = pydicom.dcmread(tmp_path / 'out' / f'ct_{end}.dcm')
    assert written.get('SpecificCharacterSet') == expected
    assert str(written.PatientName) == name
