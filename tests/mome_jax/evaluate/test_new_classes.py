"""Classes that `new_classes` of the references declares go by the names that it gives them."""

import json

import nibabel as nib
import numpy as np
import pytest
from label_maps import LIVER, SPLEEN, TUMOR, declare, labels, save

from mome_jax.evaluate import nnunet_results, score_folders

DECLARED = [{'name': 'myoma', 'parent': 'prostate', 'synonyms': ['fibroid']}]


def references(folder, new_classes, **values):
  declare(folder, **values)
  path = folder / 'dataset.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'new_classes': new_classes}))
  save(folder / 'labelsTr/a.nii.gz', labels())
  return folder / 'labelsTr'


def masks(folder, **values):
  """A folder of masks of a case; a class has one value or several."""
  for name, value in values.items():
    save(folder / f'a/{name}.nii.gz', np.isin(labels(), value).astype(np.uint8))
  return folder


def dice(predictions, truth):
  scores = score_folders.score_folders(predictions, truth)
  assert not scores.failed
  return {row['class']: row['dice'] for row in scores.rows}


def test_a_synonym_is_its_class_and_an_organ_holds_what_lies_in_it(tmp_path):
  truth = references(tmp_path, DECLARED, prostate=LIVER, Fibroid=TUMOR)
  predictions = masks(tmp_path / 'out', prostate=[LIVER, TUMOR], myoma=TUMOR)
  assert dice(predictions, truth) == {'prostate': 1.0, 'myoma': 1.0}
  only = score_folders.score_folders(predictions, truth, classes=['fibroids'])
  assert [row['class'] for row in only.rows] == ['myoma']


def test_what_predict_wrote_has_the_names_of_the_model(tmp_path):
  truth = references(tmp_path, DECLARED, prostate=LIVER, fibroid=TUMOR)
  save(tmp_path / 'out/a_seg.nii.gz', np.array([0, 19, 39, 0], np.uint8)[labels()])
  legend = [{'name': 'prostate', 'label': 19}, {'name': 'myoma', 'label': 39}]
  (tmp_path / 'out/a_seg.json').write_text(json.dumps({'labels': legend}))
  assert dice(tmp_path / 'out', truth) == {'prostate': 1.0, 'myoma': 1.0}


def test_a_declared_class_is_not_what_its_name_means_elsewhere(tmp_path):
  declared = [{'name': 'liver metastasis', 'parent': 'liver'}]
  truth = references(tmp_path, declared, **{'liver tumor': LIVER, 'liver metastasis': TUMOR})
  predictions = masks(tmp_path / 'out', liver_tumor=LIVER, liver_metastasis=TUMOR)
  assert dice(predictions, truth) == {'liver tumor': 1.0, 'liver metastasis': 1.0}


@pytest.mark.parametrize('outer', ['liver', 'left kidney'])
def test_an_organ_holds_what_lies_in_a_part_of_it(outer, tmp_path):
  """The spleen's voxels stand for a nodule far from the part: all of it is the organ's."""
  declared = [{'name': 'segment 4', 'parent': outer}, {'name': 'nodule', 'parent': 'segment 4'}]
  values = {outer: LIVER, 'segment 4': TUMOR, 'nodule': SPLEEN}
  truth = references(tmp_path, declared, **values)
  predictions = masks(tmp_path / 'out', **{
    outer: [LIVER, TUMOR, SPLEEN], 'segment 4': [TUMOR, SPLEEN], 'nodule': SPLEEN
  })  # fmt: skip
  assert dice(predictions, truth) == dict.fromkeys(values, 1.0)


def test_nnunet_paints_it_over_what_contains_it(tmp_path):
  predictions = masks(tmp_path / 'out', prostate=[LIVER, TUMOR], myoma=TUMOR)
  references(tmp_path, DECLARED, fibroid=1, prostate=2)
  nnunet_results.write(predictions, tmp_path / 'dataset.json', tmp_path / 'nn')
  painted = np.asarray(nib.load(tmp_path / 'nn/a.nii.gz').dataobj)
  np.testing.assert_array_equal(painted, np.array([0, 2, 1, 0])[labels()])
