"""The fingerprint of scans, against numpy and scipy."""

import json
import shutil
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from input_pipeline import prepare
from input_pipeline.anatomy import TEMPLATE
from mome_jax.plan import cohort
from mome_jax.plan.experiment import Experiment

LIVER, TUMOR = (TEMPLATE.get(name).index for name in ('liver', 'liver tumor'))
SPLEEN = TEMPLATE.get('spleen').index


def scan(seed=0, shape=(24, 20, 16)):
  """HU and codes: a liver of two parts with a tumor in the larger one, and a spleen."""
  rng = np.random.default_rng(seed)
  image = rng.normal(40, 60, shape).astype(np.float32)
  image[:, :2] = -1000
  codes = np.zeros(shape, np.uint8)
  codes[2:10, 4:12, 2:10] = LIVER
  codes[4:7, 5:8, 3:6] = TUMOR
  codes[14:16, 4:6, 2:4] = LIVER
  codes[18:22, 12:16, 8:12] = SPLEEN
  return image, codes


def test_facts_of_a_scan():
  image, codes = scan()
  facts = cohort.facts(image, codes, (2, 2, 5), ('liver', 'liver tumor'), TEMPLATE)
  liver = np.isin(codes, (LIVER, TUMOR))
  assert facts.volumes == pytest.approx(
    {'liver': liver.sum() * 0.02, 'liver tumor': (codes == TUMOR).sum() * 0.02}
  )
  parts, _ = ndimage.label(liver)
  sizes = np.bincount(parts.ravel())[1:]
  assert facts.pieces['liver'] == sizes.max() / sizes.sum()
  assert facts.pieces['liver tumor'] == 1
  assert facts.shape == (24, 20, 16) and facts.spacing == (2, 2, 5)


def test_a_long_scan_is_counted_a_few_slices_at_a_time(monkeypatch):
  """All at once took 16 bytes of each voxel beside the scan: gigabytes of a long one."""
  image, codes = scan(shape=(300, 160, 160))
  image = image.astype(np.int16)
  image[30] = 32000  # the widest header: no bin of air
  codes[40:] = LIVER
  monkeypatch.setattr(cohort, '_VOXELS', 2**17)
  tracemalloc.start()
  facts = cohort.facts(image, codes, (1, 1, 1), ('liver',), TEMPLATE)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 7 * image.size
  bins = np.clip((image.astype(int) + 1024) // 4, 0, 1023)
  liver = np.bincount(bins[np.isin(codes, (LIVER, TUMOR))], minlength=1024)
  assert (facts.inside['liver'] == liver / liver.sum()).all()
  other = np.bincount(bins[~np.isin(codes, (LIVER, TUMOR)) & (bins >= 31)], minlength=1024)
  assert (facts.outside == other / other.sum()).all() and facts.outside[1023] > 0


@pytest.mark.parametrize('q', [0.5, 50, 99.5])
def test_percentiles_are_those_of_the_voxels(q):
  image, codes = scan(shape=(60, 60, 60))
  facts = cohort.facts(image, codes, (1, 1, 1), ('liver', 'liver tumor'), TEMPLATE)
  one = cohort.Cohort([], TEMPLATE, [facts], {}, {}, 1, [])
  liver = image[np.isin(codes, (LIVER, TUMOR))]
  # Bins of 4 HU; half a percent of 520 voxels are three of them, whose HU lie far apart.
  assert abs(one.hu(['liver'], [q])[0] - np.percentile(liver, q)) < (25 if q != 50 else 4)
  # The unsupervised spleen is other tissue, and so is what is labelled 0; air is neither.
  other = image[~np.isin(codes, (LIVER, TUMOR)) & (image >= -900)]
  assert abs(one.hu_outside([q])[0] - np.percentile(other, q)) < 5


def test_every_scan_counts_alike():
  # A hundred times the voxels of a class at 100 HU do not outweigh a scan of it at 0 HU.
  scans = []
  for hu, n in ((0, 2), (100, 9)):
    image, codes = np.full((12,) * 3, hu, np.float32), np.zeros((12,) * 3, np.uint8)
    codes[:n, :n, :n] = SPLEEN
    scans.append(cohort.facts(image, codes, (1, 1, 1), ('spleen',), TEMPLATE))
  both = cohort.Cohort([], TEMPLATE, scans, {}, {}, 2, [])
  assert both.hu(['spleen'], [49, 51]) == [2.0, 102.0]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Six scans in the layout of nnU-Net, one of them damaged, one without a tumor."""
  folder = tmp_path_factory.mktemp('own')
  for part in ('imagesTr', 'labelsTr'):
    (folder / part).mkdir()
  for i in range(6):
    image, codes = scan(i)
    if i == 1:
      codes[codes == TUMOR] = LIVER
    for part, array in (('imagesTr', image.astype(np.int16)), ('labelsTr', codes)):
      nib.save(nib.Nifti1Image(array, np.diag([2, 2, 5, 1])), folder / part / f'c{i}.nii.gz')
  (folder / 'imagesTr' / 'c5.nii.gz').write_bytes(b'\x1f\x8bno scan')
  labels = {'background': 0, 'liver': [LIVER, TUMOR], 'liver tumor': TUMOR, 'spleen': SPLEEN}
  index = {'labels': labels, 'splits': {'validation': ['c0']}, 'supervised': {'c2': ['spleen']}}
  index['missing_is'] = 'absent'  # one patient has no tumor
  (folder / 'dataset.json').write_text(json.dumps(index))
  return folder


@pytest.fixture(scope='module')
def raw(folder, tmp_path_factory):
  nowhere = tmp_path_factory.mktemp('data')
  return cohort.read_cohort([('nifti_folder', str(folder))], nowhere, 100, name='mine')


def test_raw_scans_of_the_training_split(raw):
  assert raw.total == 5 and [case.name for case in raw.cases] == ['c1', 'c2', 'c3', 'c4']
  assert raw.labelled == {'liver': 4, 'liver tumor': 4, 'spleen': 5}
  assert raw.classes == ('spleen', 'liver', 'liver tumor')
  assert len(raw.volumes('liver tumor')) == 2
  assert raw.skipped[0][0] == 'mine c5' and 'c5.nii.gz' in raw.skipped[0][1]
  assert (raw.spacings == (2, 2, 5)).all()
  assert raw.extents[0].tolist() == [48, 40, 80]


def test_classes_that_only_held_out_scans_label_are_told(folder, tmp_path, raw):
  scans = tmp_path / 'scans'
  shutil.copytree(folder, scans)
  index = json.loads((scans / 'dataset.json').read_text())
  index['supervised'] = {f'c{i}': ['spleen'] for i in range(1, 6)}
  (scans / 'dataset.json').write_text(json.dumps(index))
  one = cohort.read_cohort([('nifti_folder', str(scans))], tmp_path, 100)
  assert one.classes == ('spleen',) and one.held_out == ['liver', 'liver tumor']
  value = Experiment(one, None, '')._classes()
  assert value.why.endswith('left out, as only held-out scans label them: liver, liver tumor')
  assert raw.held_out == [] and 'held-out' not in Experiment(raw, None, '')._classes().why


def test_prepared_scans_tell_the_same(raw, folder, tmp_path):
  prepare.prepare(
    'nifti_folder', tmp_path, manual_dir=str(folder), name='mine', spacing=(2, 2, 5), brick=8
  )
  prepared = cohort.read_cohort([('mine', None)], tmp_path, 100)
  assert prepared.classes == raw.classes and (prepared.spacings == raw.spacings).all()
  assert prepared.origins[0] == cohort.Origin('mine', 'nifti_folder', str(folder), (2.0, 2.0, 5.0))
  for ours, theirs in zip(prepared.cases, raw.cases, strict=True):
    assert ours.shape == theirs.shape and ours.volumes == theirs.volumes
    assert all((ours.inside[name] == theirs.inside[name]).all() for name in ours.volumes)


@pytest.mark.parametrize('folds', [False, True])
def test_scans_that_were_held_out_when_prepared_decide_nothing(folds, folder, tmp_path):
  scans, data = tmp_path / 'scans', tmp_path / 'data'
  shutil.copytree(folder, scans)
  index = json.loads((scans / 'dataset.json').read_text())
  (scans / 'dataset.json').write_text(json.dumps(index | {'splits': {'validation': ['c0', 'c1']}}))
  options = {'name': 'mine', 'spacing': (2, 2, 5), 'brick': 8, 'folds': folds}
  prepare.prepare('nifti_folder', data, manual_dir=str(scans), **options)
  (scans / 'dataset.json').write_text(json.dumps(index))
  one = cohort.read_cohort([('nifti_folder', str(scans))], data, 100, name='mine')
  assert [case.name for case in one.cases] == ['c2', 'c3', 'c4'] and one.total == 4


def test_few_scans_stand_for_many(folder, tmp_path):
  few = cohort.read_cohort([('nifti_folder', str(folder))], tmp_path, 2)
  assert [case.name for case in few.cases] == ['c1'] and few.total == 5  # the other one is damaged
  assert few.labelled['spleen'] == 5


def test_a_source_that_is_none_is_explained(tmp_path):
  with pytest.raises(cohort.CohortError, match='opnkbp: not prepared in .*did you mean openkbp'):
    cohort.read_cohort([('opnkbp', None)], tmp_path, 1)
