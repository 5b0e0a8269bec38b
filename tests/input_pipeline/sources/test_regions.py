"""The few real scans of other regions; skipped where they are not beside the checkout."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import dedupe, prepare, sources
from input_pipeline.anatomy import TEMPLATE

FOLDERS = {
  'thorax': 'thorax', 'chest_abdomen': 'chest_abdomen',
  'totalsegmentator_sample': 'totalsegmentator', 'sarcoma': 'ibsi_sts',
}  # fmt: skip


@pytest.fixture(scope='module')
def cases(real_data):
  """(source, case) -> case."""
  return {
    (name, case.name): case
    for name, folder in FOLDERS.items()
    for case in sources.get_source(name).listed(str(real_data / folder))[0]
  }


@pytest.fixture(scope='module')
def scans(cases):
  """(source, case) -> the scan, and class -> mask of what the case labels."""
  loaded = {}
  for key, case in cases.items():
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', '.*HU taken as air')
      scan = case.load()
    table = sources.get_source(case.source).template(None).code_table(case.labelled)
    masks = {name: table[:, k][scan.codes] for k, name in enumerate(case.labelled)}
    loaded[key] = scan, masks
  return loaded


def test_labels_lie_where_they_do_in_a_body(scans):
  for key, (scan, by_name) in scans.items():
    right, up = (
      {n: np.argwhere(mask).mean(0)[axis] for n, mask in by_name.items() if mask.any()}
      for axis in (0, 2)
    )
    for organ in ('lung', 'kidney', 'adrenal gland'):
      if f'left {organ}' in right:
        assert right[f'right {organ}'] > right[f'left {organ}'], key
    if 'liver' in right:
      assert right['liver'] > right['spleen'] and right['liver'] > right['stomach']
    if 'heart' in right:
      assert right['heart'] < scan.image.shape[0] / 2 and up['heart'] > up['liver']
    if 'bladder' in right:
      assert up['bladder'] < up['left kidney']
    for name in ('right lung', 'left lung'):
      if name in by_name:
        assert np.median(scan.image[by_name[name]]) < -600


def test_a_tumor_belongs_to_the_lung_of_its_side(scans):
  # As seen on overlays of each scan. In 4DLung-113 it is left, and no left lung is labelled.
  sides = {
    '4DLung-113_HM10395': set(), 'LIDC-IDRI-0001': {206}, 'LIDC-IDRI-0003': {205, 206},
    'NSCLC-R01-001': {205}, 'pyradiomics-lung1': {205},
  }  # fmt: skip
  for name, codes in sides.items():
    scan, by_name = scans['thorax', name]
    assert {int(code) for code in np.unique(scan.codes) if code > 200} == codes
    for side, code in (('right lung', 205), ('left lung', 206)):
      if side in by_name:
        assert by_name[side][scan.codes == code].all()
  volume = scans['thorax', 'LIDC-IDRI-0003'][1]['lung tumor'].sum() * 2 * 2 * 2.5 / 1000
  assert volume == pytest.approx(6.88)  # 688 voxels of 10 cubic mm


def test_what_is_not_known_is_not_supervised(cases, real_data):
  assert 'left lung' not in cases['thorax', '4DLung-113_HM10395'].supervised
  low, high = cases['thorax', 'pyradiomics-lung1'].slice_ranges['right lung']
  label = nib.load(real_data / 'thorax/pyradiomics-lung1_seg.nii.gz')
  (heights,) = np.nonzero(np.isin(label.dataobj, (1, 2)).any((0, 1)))
  assert low == 5 * (heights[0] - 0.5) and high > 5 * 47
  assert 'esophagus' not in cases['totalsegmentator_sample', 'example'].supervised
  assert 'gallbladder' not in cases['chest_abdomen', 'LIDC-IDRI-0001'].supervised


def test_what_is_out_of_view(cases):
  for case in cases.values():
    assert {'brainstem', 'left parotid', 'right parotid'} <= set(case.absent)
    assert not set(case.absent) & set(case.labelled)
  larynx = {case.name for case in cases.values() if 'larynx' in case.absent}
  limbs = {'STS_008', 'STS_012', 'STS_024', 'STS_051'}
  assert larynx == {'4DLung-113_HM10395', 'example', *limbs}
  bladder = {key[0] for key, case in cases.items() if 'bladder' in case.absent}
  assert bladder == {'thorax', 'chest_abdomen'}


def test_limbs_show_no_organ_of_neck_chest_and_abdomen(cases):
  """The tumor is no class, and what a pelvis shows is unknown: one of the scans ends in it."""
  pelvis = {'colon', 'intestine', 'rectum', 'bladder', 'prostate'}
  pelvis |= {'left femoral head', 'right femoral head'}
  for name in ('STS_008', 'STS_012', 'STS_024', 'STS_051'):
    case = cases['sarcoma', name]
    assert case.labelled == () and not {*case.supervised} & pelvis
    assert {s.name for s in TEMPLATE} - {*case.absent} - pelvis == {'colon tumor'}
  held_out = {key[1] for key, c in cases.items() if c.source == 'sarcoma' and c.split != 'train'}
  assert held_out == {'STS_008', 'STS_051'}


def test_openkbp_ends_above_the_abdomen(real_data):
  for name in ('openkbp', 'openkbp_tune', 'openkbp_parts', 'openkbp_ptv'):
    for case in sources.get_source(name).listed(str(real_data / 'openkbp'))[0]:
      assert {'liver', 'spleen', 'left kidney', 'bladder', 'liver tumor'} <= set(case.absent)
      assert not {'aorta', 'esophagus'} & set(case.absent)


@pytest.mark.parametrize('name', ['openkbp', 'openkbp_parts'])
def test_no_lung_lies_above_the_mandible(real_data, name):
  """Elsewhere in a neck nobody labelled them; a case that labels no mandible says nothing."""
  lungs = {'right lung', 'left lung', 'lung tumor'}
  cases = sources.get_source(name).listed(str(real_data / 'openkbp'))[0]
  held_out = [case for case in cases if case.split == 'validation']
  assert any('mandible' in case.labelled for case in held_out)
  for case in cases:
    assert lungs & set(case.absent) in (set(), lungs)
  for case in held_out[::4]:
    assert (lungs <= set(case.absent)) == ('mandible' in case.labelled)
    if 'mandible' in case.labelled:
      scan = case.load()
      slices = np.flatnonzero((scan.codes == TEMPLATE.get('mandible').index).any((0, 1)))
      low, high = case.slice_ranges['left lung']
      heights = np.arange(scan.codes.shape[2]) * scan.geometry.spacing[2]
      inside = np.flatnonzero((heights >= low) & (heights <= high))
      assert (inside[0], inside[-1]) == (slices[0], len(heights) - 1)


@pytest.mark.filterwarnings('ignore:.*')
def test_one_patient_of_two_sources_stays_in_one_split(real_data, tmp_path):
  groups = tmp_path / 'groups.json'
  downloads = [f'--download={name}={real_data / folder}' for name, folder in FOLDERS.items()]
  assert dedupe.main([*downloads, f'--output={groups}']) == 0
  (group,) = json.loads(groups.read_text())['groups']
  same = [['chest_abdomen', 'LIDC-IDRI-0001'], ['thorax', 'LIDC-IDRI-0001']]
  assert sorted(group['members']) == same
  report = prepare.prepare(
    'thorax', tmp_path, manual_dir=str(real_data / 'thorax'), groups=str(groups),
    spacing=(16, 16, 12), brick=16,
  )  # fmt: skip
  assert report['cases'] == {'train': 4, 'validation': 1}
  assert ['thorax', 'LIDC-IDRI-0001', 'chest_abdomen/LIDC-IDRI-0001'] in report['patients']
