"""Folders to score in which something is damaged or missing: it costs only itself."""

import json
import os

import numpy as np
import pytest
from label_maps import LIVER, SPLEEN, labels, save

from mome_jax.evaluate import score_files
from tests.mome_jax.evaluate.test_score_folders import nnunet, run, written

__all__ = ['nnunet']  # a fixture

DAMAGE = {
  'cut off': lambda path: path.write_bytes(path.read_bytes()[:60]),
  'empty': lambda path: path.write_bytes(b''),
  'a dangling link': lambda path: (path.unlink(), path.symlink_to('../annex/gone')),
  'text': lambda path: path.write_text('version https://git-lfs.github.com/spec/v1'),
  'another grid': lambda path: save(path, labels(), np.diag([-2.0, -1.5, 2.0, 1.0])),
  'another shape': lambda path: save(path, labels()[:-1]),
  'missing': lambda path: path.unlink(),
}


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.parametrize('side', ['prediction', 'reference'])
def test_what_cannot_be_scored_costs_only_itself(damage, side, nnunet, capsys):
  predictions, references = nnunet
  path = (predictions if side == 'prediction' else references) / 'a.nii.gz'
  DAMAGE[damage](path)
  unscored = (damage, side) != ('missing', 'reference')
  assert run(*nnunet) == unscored
  out, err = capsys.readouterr()
  assert '| liver | 1 | 100.0' in out
  scored, failed = written(predictions)
  assert scored == ['b'] and list(failed) == ['a'] * unscored
  if unscored:
    assert err.count('not scored: a: ') == 1 and '1 of 2 scans' in out
    assert 'Not scored, and in no mean' in out and str(path.parent) in failed['a']
  else:
    assert f'note: {predictions}: predictions without a reference: a' in err


def test_nothing_that_can_be_scored_is_an_error(nnunet, capsys):
  for case in 'ab':
    DAMAGE['cut off'](nnunet[0] / f'{case}.nii.gz')
  assert run(*nnunet) == 1
  err = capsys.readouterr().err
  assert 'not scored: a: ' in err and 'not scored: b: ' in err and 'nothing could be scored' in err
  assert not (nnunet[0] / 'evaluation').exists()


def test_a_mask_that_is_damaged_or_missing_costs_its_class(tmp_path, capsys):
  codes = labels()
  for case in 'ab':
    for name, value in (('liver', LIVER), ('spleen', SPLEEN)):
      for folder in ('p', 'r'):
        save(tmp_path / folder / case / f'{name}.nii.gz', (codes == value).astype(np.uint8))
  DAMAGE['cut off'](tmp_path / 'p/a/liver.nii.gz')
  (tmp_path / 'p/b/spleen.nii.gz').unlink()
  assert run(tmp_path / 'p', tmp_path / 'r') == 1
  rows = score_files.read(tmp_path / 'p/evaluation')
  assert [(row['case'], row['class']) for row in rows] == [('a', 'spleen'), ('b', 'liver')]
  err = capsys.readouterr().err
  assert 'not scored: a: ' in err and 'not scored: b: ' in err and "no class 'spleen'" in err


@pytest.mark.parametrize('side', 'pr')
def test_a_folder_of_masks_that_cannot_be_listed_costs_its_case(
  side, tmp_path, capsys, monkeypatch
):
  for place in ('p/a', 'p/b', 'r/a', 'r/b'):
    save(tmp_path / place / 'liver.nii.gz', (labels() == LIVER).astype(np.uint8))
  closed, scandir = tmp_path / side / 'a', os.scandir

  def refuse(path):
    if path == closed:
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  assert run(tmp_path / 'p', tmp_path / 'r') == 1
  scored, failed = written(tmp_path / 'p')
  reason = (
    f'{closed}: cannot be opened (Permission denied); change its permissions or copy it again'
  )
  assert scored == ['b'] and failed == {'a': reason}
  assert f'not scored: a: {reason}' in capsys.readouterr().err
  closed = tmp_path / side  # the folder as a whole
  assert run(tmp_path / 'p', tmp_path / 'r') == 1
  assert f'error: {closed}: cannot be opened (Permission denied)' in capsys.readouterr().err


def test_one_damaged_legend_does_not_cost_the_others(nnunet, capsys):
  predictions, references = nnunet
  legend = {'labels': [{'label': k, 'name': n} for k, n in ((1, 'liver'), (3, 'spleen'))]}
  for case in 'ab':
    (predictions / f'{case}.nii.gz').rename(predictions / f'{case}_seg.nii.gz')
    text = json.dumps(legend).replace(' ', '\r\n')
    (predictions / f'{case}_seg.json').write_bytes(text.encode('utf-8-sig'))
  (predictions / 'a_seg.json').write_text('{')
  assert run(*nnunet, '--classes=spleen') == 0
  assert 'note: ' in (err := capsys.readouterr().err) and 'a_seg.json: no legend of labels' in err
  assert written(predictions)[0] == ['a', 'b']
  for odd in ({'mask': 3}, {'label': 'x'}, {'label': None}, {'name': ['liver']}, []):
    content = {'labels': [{**legend['labels'][0], **odd}]} if odd else odd
    (predictions / 'b_seg.json').write_text(json.dumps(content))
    assert run(*nnunet, '--classes=spleen') == 1
    assert 'b_seg.json: no legend of labels' in capsys.readouterr().err
