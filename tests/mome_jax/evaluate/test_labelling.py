"""What `score` takes dataset.json to say of lacking classes is what `prepare` takes it to say."""

import json

import numpy as np
import pytest
from label_maps import declare, save

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.sources.nifti_folder import nifti_folder_cases
from mome_jax.errors import UserError
from mome_jax.evaluate import labelling, score_folders

SIDES = {'right kidney': 1, 'left kidney': 2, 'mandible': 3}
MYOMA = {'new_classes': [{'name': 'myoma', 'parent': 'prostate', 'synonyms': ['fibroid']}]}


def write(folder, labels, values, **more):
  declare(folder, **labels)
  path = folder / 'dataset.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | more))
  codes = np.zeros((12, 4, 4), np.uint8)
  for value in values:
    codes[3 * value - 2 : 3 * value - 1] = value
  save(folder / 'labelsTr/a.nii.gz', codes)
  save(folder / 'imagesTr/a_0000.nii.gz', codes.astype(np.int16))
  return codes


@pytest.mark.parametrize(('labels', 'more'), [
  (SIDES, {'absent': ['kidneys']}),
  (SIDES, {'absent': {'a': ['Kidney L+R']}}),
  (SIDES, {'absent': ['right kidney']}),
  ({'Kidneys': 1, 'mandible': 3}, {'absent': ['kidney_right', 'kidney_left']}),
  ({'kidney': 1, 'kidney tumor': 2, 'mandible': 3}, {'absent': ['both kidneys']}),
  (SIDES, {'supervised': ['kidney', 'mandible']}),
  (SIDES, {'supervised': {'a': ['Kidneys']}}),
  (SIDES, {'supervised': ['right kidney', 'mandible']}),
  ({'kidneys': 1, 'mandible': 3}, {'supervised': ['kidney']}),
  ({'fibroid': 1, 'mandible': 3}, {'supervised': ['myoma'], **MYOMA}),
  ({'fibroid': 1, 'mandible': 3}, {'absent': ['prostate'], **MYOMA}),
])  # fmt: skip
def test_both_read_the_same(labels, more, tmp_path):
  write(tmp_path, labels, [3], missing_is='absent', **more)
  (case,) = nifti_folder_cases(str(tmp_path))
  known = labelling.read(tmp_path / 'labelsTr')
  kidneys = {'right kidney', 'left kidney'}
  of_label = {'kidney': kidneys, 'kidneys': kidneys, 'Kidneys': kidneys, 'fibroid': {'myoma'}}
  for name in (*TEMPLATE.names(), *labels):
    classes = of_label.get(name, {name})
    assert known.out_of_view('a', name) == (classes <= set(case.absent)), name
    if name in labels and not case.absent:
      assert known.labels('a', name, occurs=False) == (classes <= set(case.supervised)), name


@pytest.mark.parametrize('whose', [{'a': 'p', 'b': 'p', 'of_training': 'p'}, {}])
def test_patients_of_several_scans_are_known(whose, tmp_path):
  write(tmp_path, SIDES, [1], missing_is='absent', patients=whose)
  for case in 'bc':
    (tmp_path / f'labelsTr/{case}.nii.gz').write_bytes(
      (tmp_path / 'labelsTr/a.nii.gz').read_bytes()
    )
  rows = score_folders.score_folders(tmp_path / 'labelsTr', tmp_path / 'labelsTr').rows
  called = {row['case']: row['patient'] for row in rows}
  first = 'labelsTr/a' if whose else ''
  assert called == {'a': first, 'b': first, 'c': ''}


def test_a_mask_of_a_pair_that_is_out_of_view_is_false_and_not_wrong(tmp_path):
  write(tmp_path / 'r', SIDES, [3], absent=['kidneys'])
  codes = write(tmp_path / 'p', SIDES, [1, 3])
  scores = score_folders.score_folders(tmp_path / 'p/labelsTr', tmp_path / 'r/labelsTr')
  rows = {row['class']: row for row in scores.rows}
  assert rows['mandible']['dice'] == 1.0 and not scores.failed
  ml = np.count_nonzero(codes == 1) * 2.0 * 1.5 * 3.0 / 1000
  assert rows['right kidney']['false_positive_ml'] == pytest.approx(ml)
  assert np.isnan([rows[name]['dice'] for name in ('right kidney', 'left kidney')]).all()


@pytest.mark.parametrize('asked', [[], ['Kidneys']])
def test_a_pair_has_one_name_in_whichever_words(asked, tmp_path):
  write(tmp_path / 'r', {'kidneys': 1, 'mandible': 3}, [1, 3], supervised=['kidney'])
  write(tmp_path / 'p', {'Kidney': 1, 'mandible': 3}, [1, 3])
  folders = tmp_path / 'p/labelsTr', tmp_path / 'r/labelsTr'
  scores = score_folders.score_folders(*folders, classes=asked)
  assert [(row['class'], row['dice']) for row in scores.rows] == [('kidney', 1.0)]


def test_a_pair_that_was_supervised_is_scored_on_both_sides(tmp_path):
  write(tmp_path / 'r', SIDES, [1, 2], supervised=['kidney'])
  write(tmp_path / 'p', SIDES, [1, 2, 3])
  scores = score_folders.score_folders(tmp_path / 'p/labelsTr', tmp_path / 'r/labelsTr')
  assert {row['class']: row['dice'] for row in scores.rows} == {
    'right kidney': 1.0, 'left kidney': 1.0
  }  # fmt: skip
  assert [note for note in scores.notes if "'mandible' is not labelled in 1" in note]


@pytest.mark.parametrize('field', ['absent', 'supervised'])
def test_what_is_no_list_is_refused_as_prepare_does(field, tmp_path):
  write(tmp_path, SIDES, [1, 2, 3], **{field: None})
  with pytest.raises(UserError, match=rf'dataset.json: "{field}" '):
    labelling.read(tmp_path / 'labelsTr')
  with pytest.raises(UserError, match=rf'dataset.json: "{field}" '):
    nifti_folder_cases(str(tmp_path))


def test_what_is_not_labelled_in_a_case_need_not_be_predicted_there(tmp_path):
  """Each case was asked for what it labels; there is nothing to score of the other class."""
  labelled = {'a': 'liver', 'b': 'spleen'}
  supervised = {case: [name] for case, name in labelled.items()}
  codes = write(tmp_path / 'r', {'liver': 1, 'spleen': 2}, [1], supervised=supervised)
  save(tmp_path / 'r/labelsTr/b.nii.gz', 2 * codes)
  for case, name in labelled.items():
    save(tmp_path / f'out/{case}_seg.nii.gz', codes)
    legend = {'labels': [{'name': name, 'label': 1}]}
    (tmp_path / f'out/{case}_seg.json').write_text(json.dumps(legend))
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'r/labelsTr')
  assert {(row['case'], row['class'], row['dice']) for row in scores.rows} == {
    ('a', 'liver', 1.0), ('b', 'spleen', 1.0)
  }  # fmt: skip
  assert not scores.failed


def test_labels_that_are_not_used_are_background(tmp_path):
  """No model that is trained on them knows such a class."""
  used = {'liver': 1, 'Table_Top': 2, 'ignore': 3}
  write(tmp_path / 'r', used, [1, 2, 3], ignored=['table top', 'ignore'])
  codes = write(tmp_path / 'p', {'liver': 1}, [1])
  codes[7] = 1  # where nobody looked
  save(tmp_path / 'p/labelsTr/a.nii.gz', codes)
  scores = score_folders.score_folders(tmp_path / 'p/labelsTr', tmp_path / 'r/labelsTr')
  assert [(row['class'], row['dice']) for row in scores.rows] == [('liver', 1.0)]
  assert not scores.failed and not scores.notes
  assert {name for case in nifti_folder_cases(str(tmp_path / 'r')) for name in case.supervised} == {
    'liver'
  }
