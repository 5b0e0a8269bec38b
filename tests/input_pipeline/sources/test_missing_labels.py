"""What it means where a label map of the user's own scans has no voxel of a class."""

import json

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.errors import UserError
from tests.input_pipeline.sources.test_nifti_folder import AFFINE, INDEX, body, cases_of, write


def without(folder, *values, case='b'):
  """Removes label values from a case."""
  path = folder / f'labelsTr/{case}.nii.gz'
  label = np.asarray(nib.load(path).dataobj)
  nib.save(
    nib.Nifti1Image(np.where(np.isin(label, values), 0, label).astype(np.uint8), AFFINE), path
  )


def test_a_class_that_some_label_maps_lack_is_asked_about(tmp_path):
  write(tmp_path)
  without(tmp_path, 2, 3)
  with pytest.raises(UserError) as error:
    cases_of(tmp_path)
  for word in ("'kidney' is in 2 of 3 label maps, not in b", "'metastasis' is in 2", 'missing_is'):
    assert word in str(error.value)
  (tmp_path / 'dataset.json').write_text(json.dumps(INDEX | {'missing_is': 'gone'}))
  with pytest.raises(
    UserError, match='"missing_is" is \'gone\'; expected "unlabelled" or "absent"'
  ):
    cases_of(tmp_path)


def test_a_class_that_all_label_maps_lack_is_asked_about(tmp_path):
  write(tmp_path, INDEX | {'labels': INDEX['labels'] | {'spleen': 9}})
  with pytest.raises(UserError, match="'spleen' is in 0 of 3 label maps, not in a, b, c"):
    cases_of(tmp_path)
  index = INDEX | {'labels': INDEX['labels'] | {'spleen': 9}, 'missing_is': 'unlabelled'}
  (tmp_path / 'dataset.json').write_text(json.dumps(index))
  assert not any('spleen' in case.supervised for case in cases_of(tmp_path))


def test_what_is_missing_is_not_labelled(tmp_path):
  write(tmp_path, INDEX | {'missing_is': 'unlabelled'})
  without(tmp_path, 2, 3)
  source = sources.get_source('nifti_folder')
  cases, notes = source.listed(str(tmp_path))
  supervised = {case.name: set(case.supervised) for case in cases}
  everything = {'liver', 'metastasis', 'right kidney', 'left kidney', 'postcava'}
  assert supervised == {'a': everything, 'b': {'liver', 'postcava'}, 'c': everything}
  assert any("'kidney' is in 2 of 3 label maps, not in b: not labelled there" in n for n in notes)
  # A case whose list says what was labelled is not looked at.
  index = INDEX | {'missing_is': 'unlabelled', 'supervised': {'b': ['liver', 'kidney']}}
  (tmp_path / 'dataset.json').write_text(json.dumps(index))
  known = {case.name: set(case.supervised) for case in cases_of(tmp_path)}
  assert known['b'] == {'liver', 'right kidney', 'left kidney'}


@pytest.mark.parametrize(
  'said', [{'missing_is': 'absent'}, {'supervised': ['liver', 'metastasis', 'kidney', 'IVC']}]
)
def test_what_is_missing_is_not_there(said, tmp_path):
  write(tmp_path, INDEX | said)
  without(tmp_path, 2, 3)
  assert len({case.supervised for case in cases_of(tmp_path)}) == 1


# ---------------------------------------------------------------------------- some of the labels
@pytest.mark.parametrize(
  ('supervised', 'names'),
  [
    (['right lung', 'left lung'], {1: 'right lung', 2: 'left lung'}),
    (['lung'], {1: 'right lung', 2: 'left lung'}),
    (['right lung'], {1: 'right lung'}),
    (['lung tumor'], {}),
  ],
)
def test_where_only_organs_are_labelled_a_tumor_is_the_one_around_it(tmp_path, supervised, names):
  index = {'labels': {'background': 0, 'right lung': 1, 'left lung': 2, 'lung tumor': 3}}
  write(tmp_path, {**index, 'supervised': {'a': supervised}}, cases=('a',))
  organ = np.zeros(body()[0].shape, np.uint8)
  organ[3:6, 4:7, 3:6], organ[8:12, 4:7, 3:6] = 1, 2  # both right of the middle of the grid
  tumor = np.zeros(organ.shape, bool)
  tumor[4, 5, 4] = tumor[9:11, 5, 4] = True
  label = np.where(tumor, 3, organ).astype(np.uint8)
  nib.save(nib.Nifti1Image(label, AFFINE), tmp_path / 'labelsTr/a.nii.gz')
  (case,) = cases_of(tmp_path)
  expected = np.zeros(organ.shape, np.uint8)
  for value, name in names.items():
    expected[organ == value] = TEMPLATE.get(name).index
  if not names:
    expected[tumor] = TEMPLATE.get('lung tumor').index
  np.testing.assert_array_equal(case.load().codes, expected[::-1])
