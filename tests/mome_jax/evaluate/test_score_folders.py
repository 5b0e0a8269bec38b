"""Folders of masks against references, as nnU-Net, TotalSegmentator and predict write them."""

import json

import nibabel as nib
import numpy as np
import pytest
from label_maps import AFFINE, LIVER, SPLEEN, TUMOR, declare, labels, save

from input_pipeline.ct import itk_image, slicer_segments, volume
from mome_jax import evaluate
from mome_jax.errors import UserError
from mome_jax.evaluate import metrics, score_files, score_folders
from mome_jax.evaluate.mask_folders import ScoreError


@pytest.fixture
def nnunet(tmp_path):
  """References with dataset.json beside them, predictions without one."""
  declare(tmp_path, liver=[LIVER, TUMOR], liver_tumor=TUMOR, spleen=SPLEEN)
  for case, shift in (('a', 1), ('b', 0)):
    save(tmp_path / f'labelsTr/{case}.nii.gz', labels())
    save(tmp_path / f'out/predicted/{case}.nii.gz', labels(shift=shift))
  return tmp_path / 'out/predicted', tmp_path / 'labelsTr'


def by_class(rows, case):
  return {row['class']: row for row in rows if row['case'] == case}


def test_label_maps_of_nnunet(nnunet):
  rows = score_folders.score_folders(*nnunet).rows
  assert {(row['source'], row['case']) for row in rows} == {('labelsTr', 'a'), ('labelsTr', 'b')}
  assert {row['dice'] for row in rows if row['case'] == 'b'} == {1.0}
  by_name = by_class(rows, 'a')
  expected = metrics.score(labels(shift=1) == TUMOR, labels() == TUMOR, (2.0, 1.5, 3.0))
  assert {name: by_name['liver tumor'][name] for name in metrics.METRICS} == vars(expected)
  assert by_name['liver']['dice'] == pytest.approx(5 / 6)  # the region holds its tumor
  assert by_name['spleen']['dice'] == 1.0
  assert by_name['liver tumor']['lesions'] == 1 and by_name['liver']['lesions'] is None


@pytest.mark.parametrize(('more', 'scored', 'told'), [
  ({'missing_is': 'unlabelled'}, {'b'}, 'not scored there: a'),
  ({'supervised': {'a': ['liver', 'liver_tumor']}}, {'b'}, 'not scored there: a'),
  ({'supervised': ['liver', 'liver_tumor']}, set(), 'not scored there: a, b'),
  ({'missing_is': 'absent'}, {'a', 'b'}, ''),
  ({'missing_is': 'unlabelled', 'supervised': {'a': ['spleen']}}, {'a', 'b'}, ''),
  ({}, {'a', 'b'}, 'scored as absent there: a;'),
])  # fmt: skip
def test_what_a_reference_does_not_label_is_not_scored(more, scored, told, nnunet):
  """Case a has a right spleen predicted, and none in the reference."""
  predictions, references = nnunet
  array = labels()
  array[array == SPLEEN] = 0
  save(references / 'a.nii.gz', array)
  path = references.parent / 'dataset.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | more))
  scores = score_folders.score_folders(predictions, references)
  spleens = {row['case']: row['dice'] for row in scores.rows if row['class'] == 'spleen'}
  assert spleens == {'a': 0.0, 'b': 1.0} if scored == {'a', 'b'} else spleens.keys() == scored
  notes = [note for note in scores.notes if "'spleen'" in note]
  assert len(notes) == bool(told) and all(told in note for note in notes)
  assert not scores.failed


@pytest.mark.parametrize('supervised', ['liver', {'a': 'liver'}, [3]])
def test_one_name_is_no_list_of_them(supervised, nnunet):
  """Its letters would be the classes, and the class itself not scored."""
  predictions, references = nnunet
  path = references.parent / 'dataset.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'supervised': supervised}))
  with pytest.raises(UserError, match='"supervised" must be a list of classes, or map cases'):
    score_folders.score_folders(predictions, references)


@pytest.mark.parametrize('absent', [['spleen', 'brainstem'], {'a': ['spleen', 'brain_stem']}])
def test_masks_of_what_is_out_of_view_are_measured(absent, nnunet):
  """In case a: a spleen that its reference lacks, and a brainstem that is no label there."""
  predictions, references = nnunet
  declare(predictions, liver=[LIVER, TUMOR], liver_tumor=TUMOR, spleen=SPLEEN, brainstem=9)
  array = labels(shift=1)
  array[0, 0, :2] = 9
  save(predictions / 'a.nii.gz', array)
  array = labels()
  array[array == SPLEEN] = 0
  save(references / 'a.nii.gz', array)
  path = references.parent / 'dataset.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'absent': absent}))
  scores = score_folders.score_folders(predictions, references)
  by_name = by_class(scores.rows, 'a')
  voxel = 2.0 * 1.5 * 3.0 / 1000
  assert by_name['brainstem']['false_positive_ml'] == pytest.approx(2 * voxel)
  spleen = np.count_nonzero(labels(shift=1) == SPLEEN)
  assert by_name['spleen']['false_positive_ml'] == pytest.approx(spleen * voxel)
  assert np.isnan([by_name[name]['dice'] for name in ('brainstem', 'spleen')]).all()
  # Case b holds a spleen: declared for all, that is a mistake of it alone.
  wrong = [case for case, reason in scores.failed if 'holds spleen' in reason]
  assert wrong == (['b'] if isinstance(absent, list) else [])
  one = score_folders.score_folders(predictions, references, classes=['brainstem']).rows
  assert {row['class'] for row in one} == {'brainstem'}


def test_ignored_voxels_are_left_out(nnunet):
  predictions, references = nnunet
  for folder in nnunet:  # where the prediction lies outside the liver, nobody looked
    declare(folder, liver=[LIVER, TUMOR], spleen=SPLEEN, ignore=9)
  codes = labels()
  codes[8] = np.where(codes[8] == 0, 9, codes[8])
  codes[2] = np.where(codes[2] == LIVER, 9, codes[2])
  save(references / 'a.nii.gz', codes)
  assert by_class(score_folders.score_folders(*nnunet).rows, 'a')['liver']['dice'] == 1.0


def test_folders_of_masks_as_totalsegmentator_writes_them(nnunet, tmp_path):
  codes = labels()
  for case in 'ab':
    masks = {'spleen': codes == SPLEEN, 'kidney_left': codes == 7, 'lung_vessels': codes == 8}
    for name, mask in masks.items():
      save(tmp_path / f'masks/{case}/segmentations/{name}.nii.gz', mask.astype(np.uint8))
      save(tmp_path / f'other/{case}/{name}.nii.gz', mask.astype(np.float32))
  (tmp_path / 'masks/b/segmentations/spleen.nii.gz').unlink()
  rows = score_folders.score_folders(
    tmp_path / 'other', tmp_path / 'masks', dataset='totalsegmentator'
  ).rows
  assert {row['source'] for row in rows} == {'totalsegmentator'}
  assert by_class(rows, 'a').keys() == {'spleen', 'left kidney', 'lung vessels'}
  assert by_class(rows, 'b').keys() == {'left kidney', 'lung vessels'}
  # Masks against label maps: the names meet.
  rows = score_folders.score_folders(nnunet[0], tmp_path / 'masks', classes=['Spleen']).rows
  assert [(row['case'], row['class'], row['dice']) for row in rows] == [('a', 'spleen', 1.0)]


def test_what_predict_writes(nnunet, tmp_path):
  save(tmp_path / 'seg/a_seg.nii.gz', np.array([0, 6, 27, 1], np.uint8)[labels(shift=1)])
  save(tmp_path / 'seg/a_masks/liver.nii.gz', (labels(shift=1) > 0).astype(np.uint8))
  legend = [{'label': k, 'name': n} for k, n in ((6, 'liver'), (27, 'liver tumor'), (1, 'spleen'))]
  (tmp_path / 'seg/a_seg.json').write_text(json.dumps({'labels': legend}))
  (nnunet[1] / 'b.nii.gz').unlink()
  by_name = by_class(score_folders.score_folders(tmp_path / 'seg', nnunet[1]).rows, 'a')
  assert by_name['liver']['dice'] == pytest.approx(5 / 6)
  assert by_name['liver tumor']['dice'] == pytest.approx(2 / 3)


def test_each_case_has_the_classes_of_its_own_legend(tmp_path):
  """Two runs into one folder: label 200 is one free text here and another there."""
  liver, lobe = labels() > 0, np.zeros((16, 14, 12), np.uint8)
  lobe[3:6, 3:9, 3:9] = 1
  declare(tmp_path, liver=LIVER, **{'liver lobe': TUMOR}, thyroid=SPLEEN)
  for case, mask in (('a', lobe), ('b', lobe[:, ::-1])):
    save(tmp_path / f'labelsTr/{case}.nii.gz', np.where(mask, TUMOR if case == 'a' else SPLEEN, 0)
         .astype(np.uint8))  # fmt: skip
  # The label map has the lobe only where no class is; its own file has all of it.
  save(tmp_path / 'seg/a_seg.nii.gz', np.where(liver, 6, 200 * lobe).astype(np.uint8))
  save(tmp_path / 'seg/a_masks/liver_lobe.nii.gz', lobe)
  save(tmp_path / 'seg/b_seg.nii.gz', (200 * lobe[:, ::-1]).astype(np.uint8))
  rows = {
    'a': [{'label': 6, 'name': 'liver'},
          {'label': 200, 'name': 'liver lobe', 'mask': 'a_masks/liver_lobe.nii.gz'}],
    'b': [{'label': 200, 'name': 'thyroid'}],
  }  # fmt: skip
  for case, legend in rows.items():
    (tmp_path / f'seg/{case}_seg.json').write_text(json.dumps({'labels': legend}))
  scores = score_folders.score_folders(tmp_path / 'seg', tmp_path / 'labelsTr')
  by_case = {case: by_class(scores.rows, case) for case in 'ab'}
  assert by_case['a']['liver lobe']['dice'] == by_case['b']['thyroid']['dice'] == 1
  assert {(case, name) for case in 'ab' for name in by_case[case]} == {
    ('a', 'liver'), ('a', 'liver lobe'), ('b', 'thyroid')
  }  # fmt: skip
  assert any("no class 'thyroid'" in reason for case, reason in scores.failed if case == 'a')


def test_label_maps_of_predict_without_the_rest_of_its_output(tmp_path, capsys):
  """Of `predict --masks`, a user moves NAME_seg.nii.gz and the legend, or the first alone."""
  liver, lobe = labels() > 0, np.zeros((16, 14, 12), np.uint8)
  lobe[3:6, 3:9, 3:9] = 1
  declare(tmp_path, liver=1, **{'liver lobe': 2})
  save(tmp_path / 'labelsTr/a.nii.gz', (liver * 1).astype(np.uint8))
  moved = tmp_path / 'moved'
  save(moved / 'a_seg.nii.gz', np.where(liver, 6, 200 * lobe).astype(np.uint8))
  rows = [
    {'label': 6, 'name': 'liver', 'mask': 'a_masks/liver.nii.gz', 'taken_as': 'class',
     'verdict': 'known'},
    {'label': 200, 'name': 'liver lobe', 'mask': 'a_masks/liver_lobe.nii.gz', 'taken_as': 'free',
     'verdict': 'near'},
  ]  # fmt: skip
  (moved / 'a_seg.json').write_text(json.dumps({'labels': rows}))
  scores = score_folders.score_folders(moved, tmp_path / 'labelsTr')
  assert {name: row['dice'] for name, row in by_class(scores.rows, 'a').items()} == {'liver': 1}
  [(case, reason)] = scores.failed
  assert case == 'a' and 'liver_lobe.nii.gz: not there, and the label map has' in reason
  (moved / 'a_seg.json').unlink()
  scores = score_folders.score_folders(moved, tmp_path / 'labelsTr')
  [note] = [note for note in scores.notes if 'no NAME_seg.json there' in note]
  assert note.startswith(f'{moved}: a_seg.nii.gz: ') and f'{tmp_path}/dataset.json; if' in note
  (moved / 'dataset.json').write_text((tmp_path / 'dataset.json').read_text())
  notes = score_folders.score_folders(moved, tmp_path / 'labelsTr').notes
  assert not any('no NAME_seg.json there' in note for note in notes)


def test_masks_of_predict_without_their_label_map(tmp_path):
  """Its folder of masks is left, in which files of free text begin with a number."""
  liver, lobe = labels() > 0, np.zeros((16, 14, 12), np.uint8)
  lobe[3:6, 3:9, 3:9] = 1
  declare(tmp_path / 'refs', liver=1, **{'liver lobe': 2})
  save(tmp_path / 'refs/a.nii.gz', np.where(lobe, 2, liver * 1).astype(np.uint8))
  save(tmp_path / 'out/a_masks/liver.nii.gz', liver.astype(np.uint8))
  save(tmp_path / 'out/a_masks/200_liver_lobe.nii.gz', lobe)
  rows = [
    {'label': 6, 'name': 'liver', 'mask': 'a_masks/liver.nii.gz'},
    {'label': 200, 'name': 'liver lobe', 'mask': 'a_masks/200_liver_lobe.nii.gz'},
  ]
  (tmp_path / 'out/a_seg.json').write_text(json.dumps({'labels': rows}))
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'refs')
  assert by_class(scores.rows, 'a')['liver lobe']['dice'] == 1 and not scores.failed


def test_two_names_of_one_class_are_refused(nnunet, tmp_path):
  declare(tmp_path, liver=LIVER, liver_tumor=TUMOR, liver_cancer=SPLEEN)
  with pytest.raises(ScoreError, match='two of the labels .* are one class; rename one'):
    score_folders.score_folders(*nnunet)
  for name in ('lung_left', 'left_lung'):
    save(tmp_path / f'twice/masks/a/{name}.nii.gz', labels())
  with pytest.raises(ScoreError, match='are one class; keep one'):
    score_folders.score_folders(tmp_path / 'twice/masks', tmp_path / 'twice/masks')


def test_an_organ_is_scored_with_its_tumor_however_it_is_declared(tmp_path):
  declare(tmp_path, liver=LIVER, liver_tumor=TUMOR, spleen=SPLEEN)  # as nnU-Net without regions
  save(tmp_path / 'labelsTr/a.nii.gz', labels())
  save(tmp_path / 'seg/a_seg.nii.gz', np.array([0, 6, 27, 1], np.uint8)[labels()])
  legend = [{'label': k, 'name': n} for k, n in ((6, 'liver'), (27, 'liver tumor'), (1, 'spleen'))]
  (tmp_path / 'seg/a_seg.json').write_text(json.dumps({'labels': legend}))
  rows = score_folders.score_folders(tmp_path / 'seg', tmp_path / 'labelsTr').rows
  assert {row['dice'] for row in rows} == {1.0} and len(rows) == 3


@pytest.mark.parametrize('both', [True, False])
def test_a_tumor_belongs_to_the_nearer_one_of_a_pair(both, tmp_path):
  codes = np.zeros((20, 8, 8), np.uint8)  # axis 0 runs to the left
  codes[2:6, 2:6, 2:6] = 1
  codes[13:17, 2:6, 2:6] = 2 if both else 0
  codes[4:7, 2:4, 2:4] = 3
  declare(tmp_path, right_kidney=1, left_kidney=2, kidney_tumor=3)
  save(tmp_path / 'labelsTr/a.nii.gz', codes)
  whole = {'right kidney': (codes == 1) | (codes == 3), 'left kidney': codes == 2}
  for name, mask in whole.items():
    save(tmp_path / f'out/a/{name}.nii.gz', mask.astype(np.uint8))
  rows = score_folders.score_folders(
    tmp_path / 'out', tmp_path / 'labelsTr', classes=list(whole)
  ).rows
  assert by_class(rows, 'a')['right kidney']['dice'] == 1.0
  dice = by_class(rows, 'a')['left kidney']['dice']
  assert dice == 1.0 if both else np.isnan(dice)


@pytest.mark.parametrize('organ', ['liver', 'kidney', 'Kidneys', 'left kidney'])
def test_an_organ_holds_its_tumor_also_where_its_sides_are_not_told(organ, tmp_path):
  tumor = 'liver tumor' if organ == 'liver' else 'kidney tumor'
  declare(tmp_path / 'labelsTr', **{organ: 1, tumor: 2})
  declare(tmp_path / 'out', **{organ: 1})
  codes = labels()
  codes[codes == SPLEEN] = 0
  save(tmp_path / 'labelsTr/a.nii.gz', codes)
  save(tmp_path / 'out/a.nii.gz', (codes > 0).astype(np.uint8))
  folders = tmp_path / 'out', tmp_path / 'labelsTr'
  (row,) = score_folders.score_folders(*folders, classes=[organ]).rows
  assert row['dice'] == 1.0


def test_the_command_writes_an_evaluation(nnunet, capsys):
  arguments = ['score', f'--predictions={nnunet[0]}', '--references', str(nnunet[1])]
  assert evaluate.main([*arguments, '--classes', 'liver, spleen']) == 0
  assert '| spleen | 2 | 100.0 [100.0, 100.0] |' in capsys.readouterr().out
  folder = nnunet[0] / 'evaluation'
  summary = json.loads((folder / 'summary.json').read_text())
  assert (
    summary['classes'].keys()
    == {'liver', 'spleen'}
    == summary['datasets']['labelsTr']['classes'].keys()
  )
  assert summary['predictions'] == str(nnunet[0])
  assert (folder / 'table.md').is_file() and (folder / 'table.csv').is_file()
  assert [row['case'] for row in score_files.read(folder)] == ['a', 'a', 'b', 'b']
  assert evaluate.main(arguments) == 0  # its own folder in the predictions is no case


def test_where_scores_go_is_tried_before_the_work(nnunet, tmp_path, monkeypatch, capsys):
  place = nnunet[0] / 'evaluation'
  monkeypatch.setattr(score_folders, 'score_folders', lambda *_, **__: pytest.fail('scored'))
  place.write_text('')
  assert run(*nnunet) == 1
  assert f'error: {place}: is a file, no folder; choose another place' in capsys.readouterr().err
  place.unlink()
  place.mkdir()
  refuse = lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))
  with monkeypatch.context() as patch:
    patch.setattr(type(evaluate.command.epath.Path(place)), 'write_text', refuse)
    assert run(*nnunet) == 1
  assert f'{place}: cannot be written (Permission denied)' in capsys.readouterr().err
  monkeypatch.undo()
  place.rmdir()
  for options in ((), ('--output', str(tmp_path / 'new'))):  # nothing is left of what fails
    assert run(*nnunet, '--classes=colon', *options) == 1
    assert "no class 'colon'" in capsys.readouterr().err
  assert not place.exists() and not (tmp_path / 'new').exists()
  assert run(tmp_path / 'nowhere', nnunet[1]) == 1
  assert 'nowhere: no such folder' in capsys.readouterr().err
  assert not (tmp_path / 'nowhere').exists()


def test_a_dataset_has_one_name_however_its_folder_is_reached(
  nnunet, tmp_path, monkeypatch, capsys
):
  predictions, references = nnunet
  (tmp_path / 'gt').symlink_to(references)
  monkeypatch.chdir(references)
  for number, place in enumerate(('.', tmp_path / 'gt', '../labelsTr')):
    assert run(predictions, place, '--output', str(tmp_path / f'scores{number}')) == 0
    rows = score_files.read(tmp_path / f'scores{number}')
    assert {row['source'] for row in rows} == {'labelsTr'}
  assert run(predictions, '.', '--output', str(tmp_path / 'other'), '--dataset=gt') == 0
  pair = str(tmp_path / 'scores0'), str(tmp_path / 'other')
  capsys.readouterr()
  assert evaluate.main(['compare', *pair]) == 1
  assert capsys.readouterr().err == (
    f'error: {pair[1]}: has the cases of {pair[0]}, but the datasets are called labelsTr and gt; '
    'score both with the same --dataset, or evaluate both with the same config.data.sources\n'
  )


def test_mistakes_are_named(nnunet, tmp_path):
  predictions, references = nnunet
  with pytest.raises(ScoreError, match="no class 'pancreas', 'colon'; there are liver, liver t"):
    score_folders.score_folders(*nnunet, classes=['pancreas', 'liver', 'colon'])
  with pytest.raises(ScoreError, match='nowhere: no such folder'):
    score_folders.score_folders(tmp_path / 'nowhere', references)
  with pytest.raises(ScoreError, match='a whole dataset; give labelsTr in it'):
    score_folders.score_folders(predictions, references.parent)
  with pytest.raises(ScoreError, match='no NAME.nii.gz with labels'):
    (tmp_path / 'empty').mkdir()
    score_folders.score_folders(tmp_path / 'empty', references)
  declare(predictions, liver=1)
  with pytest.raises(ScoreError, match="no class 'liver tumor', 'spleen'; there are liver. Le"):
    score_folders.score_folders(*nnunet)


@pytest.mark.parametrize('place', ['inside', 'beside'])
@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      lambda path: path.symlink_to('gone.json'),
      'a link to gone.json, which is not there; get that',
    ),
    (lambda path: path.mkdir(), 'is a folder, where a file is expected; remove it'),
  ],
  ids=['dangling link', 'folder'],
)
def test_a_declaration_that_cannot_be_read_is_no_missing_one(
  place, damage, message, nnunet, capsys
):
  """Else the built-in template would name the values: its 1 is the spleen."""
  beside = nnunet[1].parent / 'dataset.json'
  beside.unlink()
  path = nnunet[1] / 'dataset.json' if place == 'inside' else beside
  damage(path)
  assert run(*nnunet) == 1
  assert f'error: {path}: {message}' in capsys.readouterr().err
  assert not (nnunet[0] / 'evaluation').exists()


def run(predictions, references, *options):
  return evaluate.main(
    ['score', f'--predictions={predictions}', f'--references={references}', *options]
  )


def written(predictions):
  folder = predictions / 'evaluation'
  cases = [row['case'] for row in score_files.read(folder)]
  failed = json.loads((folder / 'summary.json').read_text()).get('failed', [])
  return sorted(set(cases)), {entry['case']: entry['reason'] for entry in failed}


def test_a_case_that_is_there_twice_is_named(nnunet):
  save(nnunet[0] / 'a_seg.nii', labels())
  scores = score_folders.score_folders(*nnunet)
  assert {row['case'] for row in scores.rows} == {'b'}
  ((case, reason),) = scores.failed
  assert case == 'a' and 'a.nii.gz and a_seg.nii are both' in reason.replace(
    'a_seg.nii and a.nii.gz', 'a.nii.gz and a_seg.nii'
  )


@pytest.mark.parametrize('axes', ['SLA', 'PIR', 'RAS'])
def test_a_prediction_in_another_axis_order_is_the_same(axes, nnunet):
  predictions, _ = nnunet
  turn = nib.orientations.ornt_transform(
    nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
  )
  for path in predictions.iterdir():
    nib.save(nib.Nifti1Image(labels(), AFFINE).as_reoriented(turn), path)
  scores = score_folders.score_folders(*nnunet)
  assert not scores.failed and {row['dice'] for row in scores.rows} == {1.0}


def test_channels_in_names_are_passed_over_where_that_makes_a_pair(nnunet):
  predictions, references = nnunet
  for case in 'ab':
    (predictions / f'{case}.nii.gz').rename(predictions / f'{case}_0000_seg.NII.GZ')
  assert {row['case'] for row in score_folders.score_folders(*nnunet).rows} == {'a', 'b'}
  # Patients who are numbered keep their numbers.
  for folder in nnunet:
    for path in sorted(folder.iterdir()):
      path.unlink()
    for number in ('0000', '0012'):
      save(folder / f'case_{number}.nii.gz', labels())
  (predictions / 'case_0012.nii.gz').unlink()
  scores = score_folders.score_folders(*nnunet)
  assert {row['case'] for row in scores.rows} == {'case_0000'}
  assert [case for case, _ in scores.failed] == ['case_0012']


@pytest.mark.parametrize(('start', 'size', 'dice'), [
  (5, 10, 0.5), (7, 6, 0.375), (-4, 6, 0.25), (0, 10, 1), (12, 10, 0),
  (4.5, 10, None), (0.2, 8, None),
])  # fmt: skip
def test_cut_segmentations_of_slicer_are_compared_where_they_lie(start, size, dice, tmp_path):
  # Whole boxes along the first axis: 0..10 against start..start+size, of 10 x 10 voxels across.
  declared = [slicer_segments.Segment('liver', 0, 1)]
  for folder, first, length in (('predicted', start, size), ('references', 0, 10)):
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 3] = 2 * first
    grid = volume.to_canonical(np.zeros((length, 10, 10)), affine).geometry
    (tmp_path / folder).mkdir()
    header = slicer_segments.header(declared, {'liver': (1, 0, 0)}, grid.shape)
    box = np.ones((length, 10, 10, 1), np.uint8)
    itk_image.write(tmp_path / folder / 'a.seg.nrrd', box, grid, header)
  scores = score_folders.score_folders(tmp_path / 'predicted', tmp_path / 'references')
  if dice is None:
    [(_, reason)] = scores.failed
    assert 'a.seg.nrrd: its voxels are not those of' in reason
  else:
    assert [row['dice'] for row in scores.rows] == [pytest.approx(dice)] and not scores.failed
