"""Results in nnU-Net's naming and numbers."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mome_jax.errors import UserError
from mome_jax.evaluate import nnunet_results, score_folders
from mome_jax.evaluate.command import main
from mome_jax.evaluate.mask_folders import ScoreError
from tests.mome_jax.evaluate.test_score_folders import AFFINE, save


def results(folder, cases=('a_0000', 'b')):
  """As predict writes them: liver 6 under its tumor 27, spleen 1."""
  codes = np.zeros((9, 8, 7), np.uint8)
  codes[2:6, 2:6, 2:6], codes[3, 3:5, 3], codes[7:9, 2:4, 2:4] = 6, 27, 1
  for case in cases:
    save(folder / f'{case}_seg.nii.gz', codes)
    legend = {'labels': [{'name': name, 'label': label} for name, label in
                         (('spleen', 1), ('liver', 6), ('liver tumor', 27))]}  # fmt: skip
    (folder / f'{case}_seg.json').write_text(json.dumps(legend))
  return codes


def dataset(tmp_path, labels, **fields):
  path = tmp_path / 'dataset.json'
  path.write_text(json.dumps({'labels': {'background': 0, **labels}, **fields}))
  return path


def test_values_of_the_dataset(tmp_path, capsys):
  codes = results(tmp_path / 'out')
  path = dataset(tmp_path, {'liver_tumor': 1, 'Liver': 2, 'spleen': 5, 'colon': 4, 'ignore': 6})
  arguments = {'--results': tmp_path / 'out', '--dataset': path, '--output': tmp_path / 'nn'}
  assert main(['nnunet', *(str(part) for pair in arguments.items() for part in pair)]) == 0
  assert "'colon' is not in the results" in capsys.readouterr().err
  files = sorted(entry.name for entry in (tmp_path / 'nn').iterdir())
  assert files == ['a.nii.gz', 'b.nii.gz', 'dataset.json']
  written = nib.load(tmp_path / 'nn' / 'a.nii.gz')
  expected = np.select([codes == 27, codes == 6, codes == 1], [1, 2, 5])  # the tumor on the liver
  np.testing.assert_array_equal(written.dataobj, expected)
  np.testing.assert_allclose(written.affine, AFFINE)
  scores = score_folders.score_folders(tmp_path / 'nn', tmp_path / 'nn', classes=['spleen'])
  assert [row['dice'] for row in scores.rows] == [1, 1]


@pytest.mark.parametrize('path', ['.', 'gone'])
def test_what_is_no_file_is_not_to_be_removed(path, tmp_path):
  """Nor is the folder of a dataset, given in place of its dataset.json."""
  results(tmp_path / 'out')
  with pytest.raises(ScoreError, match='no such file; give the dataset.json of a dataset'):
    nnunet_results.write(tmp_path / 'out', tmp_path / path, tmp_path / 'nn')


def test_a_tumor_is_painted_after_a_pair_that_does_not_tell_its_sides(tmp_path):
  kidney, tumor = np.zeros((2, 9, 8, 7), np.uint8)
  kidney[2:6, 2:6, 2:6], tumor[3, 3:5, 3] = 1, 1
  for name, mask in (('kidneys', kidney), ('kidney_tumor', tumor)):
    save(tmp_path / f'out/a/{name}.nii.gz', mask)
  path = dataset(tmp_path, {'kidney_tumor': 1, 'kidney': 2})
  nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')
  written = nib.load(tmp_path / 'nn/a.nii.gz')
  np.testing.assert_array_equal(written.dataobj, np.select([tumor == 1, kidney == 1], [1, 2]))


@pytest.mark.parametrize('labels', [{'kidney': 1, 'spleen': 2}, {'spleen': 2, 'Kidneys': 1}])
def test_a_pair_that_a_dataset_does_not_separate_is_both_of_its_sides(labels, tmp_path):
  """As a model predicts it that was trained on that dataset."""
  codes = np.zeros((9, 8, 7), np.uint8)
  codes[1:3, 2:6, 2:6], codes[6:8, 2:6, 2:6], codes[4, 2, 2] = 2, 3, 1
  save(tmp_path / 'out/a_seg.nii.gz', codes)
  rows = [{'name': name, 'label': label} for name, label in
          (('right kidney', 2), ('left kidney', 3), ('spleen', 1))]  # fmt: skip
  (tmp_path / 'out/a_seg.json').write_text(json.dumps({'labels': rows}))
  _, notes = nnunet_results.write(tmp_path / 'out', dataset(tmp_path, labels), tmp_path / 'nn')
  written = nib.load(tmp_path / 'nn/a.nii.gz')
  np.testing.assert_array_equal(written.dataobj, np.array([0, 2, 1, 1], np.uint8)[codes])
  assert not notes


def test_a_pair_of_new_classes_is_both_of_its_sides_too(tmp_path):
  right, left = np.zeros((2, 9, 8, 7), np.uint8)
  right[1:3, 2:6, 2:6], left[6:8, 2:6, 2:6] = 1, 1
  for side, mask in (('right', right), ('left', left)):
    save(tmp_path / f'out/a/{side}_hip.nii.gz', mask)
  classes = [{'name': f'{side} hip', 'side': side} for side in ('right', 'left')]
  path = dataset(tmp_path, {'hip': 3}, new_classes=classes, missing_is='absent')
  nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')
  written = nib.load(tmp_path / 'nn/a.nii.gz')
  np.testing.assert_array_equal(written.dataobj, 3 * (right | left))
  rows = score_folders.score_folders(tmp_path / 'out', tmp_path / 'nn').rows
  assert [(row['class'], row['dice']) for row in rows] == [('hip', 1.0)]


def test_one_side_is_no_pair(tmp_path):
  save(tmp_path / 'out/a/kidney_left.nii.gz', np.ones((9, 8, 7), np.uint8))
  with pytest.raises(ScoreError, match='none of the labels'):
    nnunet_results.write(tmp_path / 'out', dataset(tmp_path, {'kidney': 1}), tmp_path / 'nn')


def test_values_without_a_meaning_are_told(tmp_path):
  results(tmp_path / 'out', ['a'])
  legend = tmp_path / 'out/a_seg.json'
  rows = json.loads(legend.read_text())['labels']
  legend.write_text(json.dumps({'labels': rows[:2]}))  # without the tumor
  (tmp_path / 'raw').mkdir()
  path = dataset(tmp_path / 'raw', {'liver': 1, 'spleen': 2})
  _, notes = nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')
  assert len(notes) == 1 and 'values 27 in a are not declared' in notes[0]
  legend.unlink()
  (note,) = nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn2')[1]
  assert 'they are taken for those of the class table' in note


def test_regions_and_another_ending(tmp_path):
  codes = results(tmp_path / 'out')
  regions = {'liver': [1, 2], 'liver_tumor': 2}
  path = dataset(tmp_path, regions, regions_class_order=[1, 2], file_ending='.mha')
  nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')
  image = sitk.ReadImage(tmp_path / 'nn' / 'b.mha')
  expected = np.select([codes == 27, codes == 6], [2, 1])
  np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), expected)
  np.testing.assert_allclose(image.GetSpacing(), (2, 1.5, 3))
  assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)  # AFFINE is LPS


@pytest.mark.parametrize('order', [None, 3, [1], ['liver', 'tumor'], [1, 2.5], [1, None], [1, '2']])
def test_an_order_of_regions_that_holds_no_values_is_told(order, tmp_path):
  results(tmp_path / 'out')
  regions = {'liver': [1, 2], 'liver_tumor': 2}
  path = dataset(tmp_path, regions, regions_class_order=order)
  with pytest.raises(
    ScoreError, match=r'dataset.json: "regions_class_order" is .*; expected a whole'
  ):
    nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')


def test_a_label_without_end_is_told(tmp_path):
  results(tmp_path / 'out')
  path = dataset(tmp_path, {'liver': float('inf')})
  with pytest.raises(UserError, match="label 'liver' has value inf; expected a whole number"):
    nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')


@pytest.mark.parametrize(('labels', 'fields', 'told'), [
  ({'colon': 1}, {}, 'none of the labels'),
  ({'liver': 1}, {'file_ending': '.png'}, "'.png'; expected .nii.gz"),
  ({'liver': 300}, {}, 'outside 0..255'),
  ({'liver': [], 'spleen': 2}, {}, 'labels without a value: liver; give each one'),
  ({'kidney_left': 1, 'left kidney': 2}, {}, 'one class'),
])  # fmt: skip
def test_what_does_not_fit_is_told(labels, fields, told, tmp_path):
  results(tmp_path / 'out')
  with pytest.raises(ScoreError, match=told):
    nnunet_results.write(tmp_path / 'out', dataset(tmp_path, labels, **fields), tmp_path / 'nn')


def test_a_case_that_was_not_asked_for_a_class_is_not_written_without_it(tmp_path, capsys):
  results(tmp_path / 'out')
  legend = tmp_path / 'out' / 'b_seg.json'
  rows = json.loads(legend.read_text())['labels']
  legend.write_text(json.dumps({'labels': [row for row in rows if row['name'] != 'spleen']}))
  path = dataset(tmp_path, {'liver': 1, 'spleen': 2})
  arguments = ['--results', tmp_path / 'out', '--dataset', path, '--output', tmp_path / 'nn']
  assert main(['nnunet', *map(str, arguments)]) == 1
  told = "b_seg.nii.gz: no class 'spleen', which other cases have; predict it there too"
  assert told in capsys.readouterr().err
  assert not (tmp_path / 'nn').exists()


def test_cases_of_another_run_in_the_output_are_told(tmp_path):
  """nnU-Net would score them as if they were of these results."""
  path = dataset(tmp_path, {'liver': 1, 'spleen': 2})
  results(tmp_path / 'out')
  assert nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')[1] == []
  (tmp_path / 'out/b_seg.nii.gz').unlink()
  (note,) = nnunet_results.write(tmp_path / 'out', path, tmp_path / 'nn')[1]
  assert note.startswith(f'{tmp_path / "nn"}: holds b.nii.gz besides, which would be scored along')
