"""Folders of masks against references, as nnU-Net, TotalSegmentator and predict write them."""

import json

import nibabel as nib
import numpy as np
import pytest

from input_pipeline.sources.base import SourceError
from mome_jax import evaluate, metrics, results, score

AFFINE = np.diag([-2.0, -1.5, 3.0, 1.0])  # LPS on disk
LIVER, TUMOR, SPLEEN = 1, 2, 3


def labels(*, shift=0):
  codes = np.zeros((16, 14, 12), np.uint8)
  codes[2 + shift : 8 + shift, 3:9, 3:9] = LIVER
  codes[4 + shift : 7 + shift, 4:7, 4:7] = TUMOR
  codes[10:14, 3:8, 2:6] = SPLEEN
  return codes


def save(path, array, affine=AFFINE):
  path.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(array, affine), path)


def declare(folder, **meaning):
  folder.mkdir(parents=True, exist_ok=True)
  content = {'labels': {'background': 0, **meaning}}
  (folder / 'dataset.json').write_text(json.dumps(content))


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
  rows = score.score_folders(*nnunet)
  assert {(row['source'], row['case']) for row in rows} == {('labelsTr', 'a'), ('labelsTr', 'b')}
  assert {row['dice'] for row in rows if row['case'] == 'b'} == {1.0}
  found = by_class(rows, 'a')
  expected = metrics.score(labels(shift=1) == TUMOR, labels() == TUMOR, (2.0, 1.5, 3.0))
  assert {name: found['liver tumor'][name] for name in metrics.METRICS} == vars(expected)
  assert found['liver']['dice'] == pytest.approx(5 / 6)  # the region holds its tumor
  assert found['spleen']['dice'] == 1.0
  assert found['liver tumor']['lesions'] == 1 and found['liver']['lesions'] is None


def test_ignored_voxels_are_left_out(nnunet):
  predictions, references = nnunet
  for folder in nnunet:  # where the prediction lies outside the liver, nobody looked
    declare(folder, liver=[LIVER, TUMOR], spleen=SPLEEN, ignore=9)
  codes = labels()
  codes[8] = np.where(codes[8] == 0, 9, codes[8])
  codes[2] = np.where(codes[2] == LIVER, 9, codes[2])
  save(references / 'a.nii.gz', codes)
  assert by_class(score.score_folders(*nnunet), 'a')['liver']['dice'] == 1.0


def test_folders_of_masks_as_totalsegmentator_writes_them(nnunet, tmp_path):
  codes = labels()
  for case in 'ab':
    masks = {'spleen': codes == SPLEEN, 'kidney_left': codes == 7, 'lung_vessels': codes == 8}
    for name, mask in masks.items():
      save(tmp_path / f'masks/{case}/segmentations/{name}.nii.gz', mask.astype(np.uint8))
      save(tmp_path / f'other/{case}/{name}.nii.gz', mask.astype(np.float32))
  (tmp_path / 'masks/b/segmentations/spleen.nii.gz').unlink()
  rows = score.score_folders(tmp_path / 'other', tmp_path / 'masks', dataset='totalsegmentator')
  assert {row['source'] for row in rows} == {'totalsegmentator'}
  assert by_class(rows, 'a').keys() == {'spleen', 'left kidney', 'lung vessels'}
  assert by_class(rows, 'b').keys() == {'left kidney', 'lung vessels'}
  # Masks against label maps: the names meet.
  rows = score.score_folders(nnunet[0], tmp_path / 'masks', classes=['Spleen'])
  assert [(row['case'], row['class'], row['dice']) for row in rows] == [('a', 'spleen', 1.0)]


def test_what_predict_writes(nnunet, tmp_path):
  save(tmp_path / 'seg/a_seg.nii.gz', np.array([0, 6, 27, 1], np.uint8)[labels(shift=1)])
  save(tmp_path / 'seg/a_masks/liver.nii.gz', (labels(shift=1) > 0).astype(np.uint8))
  legend = [{'label': k, 'name': n} for k, n in ((6, 'liver'), (27, 'liver tumor'), (1, 'spleen'))]
  (tmp_path / 'seg/a_seg.json').write_text(json.dumps({'labels': legend}))
  (nnunet[1] / 'b.nii.gz').unlink()
  found = by_class(score.score_folders(tmp_path / 'seg', nnunet[1]), 'a')
  assert found['liver']['dice'] == pytest.approx(5 / 6)
  assert found['liver tumor']['dice'] == pytest.approx(2 / 3)


def test_without_any_declaration_values_are_those_of_the_class_table(tmp_path):
  for folder in ('p', 'r'):
    save(tmp_path / f'{folder}/a.nii', np.array([0, 6, 27, 1], np.uint8)[labels()])
  found = by_class(score.score_folders(tmp_path / 'p', tmp_path / 'r'), 'a')
  assert found['liver']['dice'] == found['spleen']['dice'] == 1.0
  assert np.isnan(found['pancreas']['dice'])


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
  assert [row['case'] for row in results.read(folder)] == ['a', 'a', 'b', 'b']
  assert evaluate.main(arguments) == 0  # its own folder in the predictions is no case


def test_mistakes_are_named(nnunet, tmp_path, capsys):
  predictions, references = nnunet
  with pytest.raises(score.ScoreError, match="no class 'pancreas'; there are liver, liver tumor"):
    score.score_folders(*nnunet, classes=['pancreas'])
  with pytest.raises(score.ScoreError, match='nowhere: no such folder'):
    score.score_folders(tmp_path / 'nowhere', references)
  with pytest.raises(score.ScoreError, match='no NAME.nii.gz with labels'):
    (tmp_path / 'empty').mkdir()
    score.score_folders(tmp_path / 'empty', references)
  save(predictions / 'b.nii.gz', labels(), np.diag([-2.0, -1.5, 2.0, 1.0]))
  with pytest.raises(SourceError, match=r'b.nii.gz: axes LPS, voxels of \[2.0, 1.5, 2.0\] mm'):
    score.score_folders(*nnunet)
  (predictions / 'b.nii.gz').unlink()
  assert evaluate.main(['score', f'--predictions={predictions}', f'--references={references}']) == 1
  assert '1 of 2 references have no prediction, such as b' in capsys.readouterr().err
  declare(predictions, liver=1)
  (references / 'b.nii.gz').unlink()
  with pytest.raises(score.ScoreError, match="no class 'liver tumor'; there are liver. Leave"):
    score.score_folders(*nnunet)
