"""Label values of which nothing says what they are."""

import json

import numpy as np
import pytest
from label_maps import declare, labels, save

from input_pipeline.errors import UserError
from mome_jax import evaluate
from mome_jax.evaluate import score_folders


def test_without_any_declaration_values_are_those_of_the_class_table(tmp_path):
  for folder in ('p', 'r'):
    save(tmp_path / f'{folder}/a.nii', np.array([0, 6, 27, 1], np.uint8)[labels()])
  scores = score_folders.score_folders(tmp_path / 'p', tmp_path / 'r')
  assert {row['class']: row['dice'] for row in scores.rows} == {  # and not the whole table
    'spleen': 1.0, 'liver': 1.0, 'liver tumor': 1.0
  }  # fmt: skip
  (note,) = scores.notes
  assert note.startswith(f'{tmp_path / "r"} and {tmp_path / "p"}: nothing says what the values')
  assert note.endswith(f'1 is spleen; if they are others, put a dataset.json with "labels" into '
                       f'{tmp_path / "r"}')  # fmt: skip
  pair = tmp_path / 'p', tmp_path / 'r'
  asked = score_folders.score_folders(*pair, classes=['pancreas', 'liver'])
  assert {row['class'] for row in asked.rows} == {'pancreas', 'liver'}


def test_values_that_nothing_declares_are_told(tmp_path, capsys):
  """The model numbers the spleen 3, and nothing says so: it would be missing without a word."""
  declare(tmp_path / 'labelsTr', liver=1, spleen=2)
  save(tmp_path / 'labelsTr/a.nii.gz', np.array([0, 1, 1, 2], np.uint8)[labels()])
  save(tmp_path / 'out/a.nii.gz', np.array([0, 1, 1, 3], np.uint8)[labels()])
  pair = f'--predictions={tmp_path / "out"}', f'--references={tmp_path / "labelsTr"}'
  assert evaluate.main(['score', *pair]) == 0
  place = tmp_path / 'labelsTr/dataset.json'
  assert capsys.readouterr().err.splitlines()[-1] == (
    f'note: {tmp_path / "out"}: values 3 in a are not declared in {place}, and in no mask; declare '
    'them there, or put a dataset.json of its own into that folder'
  )
  declare(tmp_path / 'out', liver=1, spleen=3)
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'labelsTr')
  assert {row['dice'] for row in scores.rows} == {1.0} and not scores.notes
  with_legend = [{'label': 1, 'name': 'liver'}, {'label': 2, 'name': 'spleen'}]
  save(tmp_path / 'seg/a_seg.nii.gz', np.array([0, 1, 2, 2], np.uint8)[labels()])
  (tmp_path / 'seg/a_seg.json').write_text(json.dumps({'labels': with_legend[:1]}))
  seg = tmp_path / 'seg', tmp_path / 'labelsTr'
  (note,) = score_folders.score_folders(*seg, classes=['liver']).notes
  assert f'values 2 in a are not declared in {tmp_path / "seg"}/NAME_seg.json' in note


def test_a_misspelt_field_of_the_references_is_refused(tmp_path):
  for part in ('labelsTr', 'out'):
    save(tmp_path / part / 'a.nii.gz', np.array([0, 1, 1, 2], np.uint8)[labels()])
  content = {'labels': {'background': 0, 'liver': 1, 'spleen': 2}, 'missing': 'unlabelled'}
  (tmp_path / 'labelsTr/dataset.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"dataset.json: unknown fields \['missing'\]; did"):
    score_folders.score_folders(tmp_path / 'out', tmp_path / 'labelsTr')


def test_labels_beyond_eight_bits_are_read_where_they_are_declared(tmp_path):
  """As `predict` writes them of many free texts; an image in place of a label map stays one."""
  codes = np.array([0, 6, 6, 300], np.uint16)[labels()]
  save(tmp_path / 'out/a_seg.nii.gz', codes)
  legend = [{'label': 6, 'name': 'liver'}, {'label': 300, 'name': 'thyroid nodule'}]
  (tmp_path / 'out/a_seg.json').write_text(json.dumps({'labels': legend}))
  declare(tmp_path / 'r', liver=6, **{'thyroid nodule': 300})
  save(tmp_path / 'r/a.nii.gz', codes)
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'r')
  assert {row['class']: row['dice'] for row in scores.rows} == {'liver': 1, 'thyroid nodule': 1}
  declare(tmp_path / 'r', liver=6)
  ((_, reason),) = score_folders.score_folders(tmp_path / 'out', tmp_path / 'r').failed
  assert 'label values 300 are outside 0..255' in reason


def test_references_without_a_declaration_need_only_what_is_in_them(tmp_path):
  """The table has 32 names that `predict` was not asked for."""
  save(tmp_path / 'refs/a.nii.gz', np.array([0, 6, 6, 1], np.uint8)[labels()])
  save(tmp_path / 'seg/a_seg.nii.gz', np.array([0, 6, 6, 0], np.uint8)[labels()])
  (tmp_path / 'seg/a_seg.json').write_text('{"labels": [{"label": 6, "name": "liver"}]}')
  pair = tmp_path / 'seg', tmp_path / 'refs'
  scores = score_folders.score_folders(*pair)
  assert {row['class']: row['dice'] for row in scores.rows} == {'liver': 1.0}
  [(_, reason)] = scores.failed
  assert reason.endswith("no class 'spleen'; there are liver")
  with pytest.raises(UserError, match="no class 'aorta'; there are liver"):
    score_folders.score_folders(*pair, classes=['aorta'])


@pytest.mark.parametrize('classes', [(), ('liver',)])
def test_references_with_numbers_of_their_own_are_told(tmp_path, classes):
  """They would have Dice 0, each class in a scan that does not hold it."""
  save(tmp_path / 'refs/a.nii.gz', labels())
  save(tmp_path / 'seg/a_seg.nii.gz', (6 * (labels() > 0)).astype(np.uint8))
  (tmp_path / 'seg/a_seg.json').write_text('{"labels": [{"label": 6, "name": "liver"}]}')
  told = 'refs: nothing says what .* put a dataset.json .*; as they are, none has a voxel of liver'
  with pytest.raises(UserError, match=told):
    score_folders.score_folders(tmp_path / 'seg', tmp_path / 'refs', classes=classes)


def test_an_organ_without_its_side_is_both(tmp_path):
  declare(tmp_path / 'refs', **{'left kidney': 1, 'right kidney': 2, 'spleen': 3})
  save(tmp_path / 'refs/a.nii.gz', labels())
  save(tmp_path / 'seg/a.nii.gz', labels())
  places = tmp_path / 'seg', tmp_path / 'refs'
  rows = score_folders.score_folders(*places, classes=['Kidneys', 'left kidney']).rows
  assert [row['class'] for row in rows] == ['left kidney', 'right kidney']
  with pytest.raises(UserError, match="no class 'lung'"):
    score_folders.score_folders(*places, classes=['lungs'])
