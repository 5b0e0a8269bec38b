"""Evaluation folders: what stands in them is whole."""

import numpy as np
import pytest
from etils import epath

from input_pipeline.files import text_files
from mome_jax.evaluate import score_files, tables


def test_a_summary_is_only_in_a_whole_folder(tmp_path, monkeypatch):
  folder = epath.Path(tmp_path)
  mask = np.ones((4, 4, 4), bool)
  rows = [score_files.score('s', 'a', 'liver', mask, mask, (1, 1, 1))]
  assert score_files.read_summary(folder) == {}
  score_files.write(folder, rows, title='t', origin={'step': 5})
  assert score_files.read_summary(folder)['step'] == 5
  killed = lambda summary: (_ for _ in ()).throw(KeyboardInterrupt)
  monkeypatch.setattr(tables, 'to_csv', killed)
  with pytest.raises(KeyboardInterrupt):
    score_files.write(folder, rows, title='t', origin={'step': 6})
  assert score_files.read_summary(folder) == {}


def test_scores_without_a_whole_summary_are_not_read(tmp_path, monkeypatch):
  rows = [
    score_files.score('s', case, 'liver', *[np.ones((4, 4, 4), bool)] * 2, (1, 1, 1))
    for case in 'ab'
  ]
  place = tmp_path / 'run/evaluation'
  score_files.write(place, rows, title='t', origin={'step': 5})
  written, replace = [], text_files.replace

  def interrupted(path, content):
    if len(written) == 1:
      raise KeyboardInterrupt
    written.append(replace(path, content))

  monkeypatch.setattr(text_files, 'replace', interrupted)
  with pytest.raises(KeyboardInterrupt):
    score_files.write(place, rows[:1], title='t', origin={'step': 6})
  assert not list(place.glob('*.part'))
  for cut in (None, '{"step": 6, "mean_d', '[]'):
    if cut is not None:
      (place / 'summary.json').write_text(cut)
    assert score_files.read_summary(epath.Path(place)) == {}
    for path in (tmp_path / 'run', place):
      with pytest.raises(
        score_files.ResultsError, match='evaluation: no whole summary.json, .*; e'
      ):
        score_files.read(path)
  assert len(score_files.read(place / 'cases.csv')) == 1  # who names the file has looked at it


def test_scores_that_the_disk_does_not_give_are_an_error(tmp_path, monkeypatch):
  file = tmp_path / 'cases.csv'
  file.write_text('case,class')

  def refused(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(text_files, 'read_text', refused)
  with pytest.raises(
    score_files.ResultsError, match='cases.csv: cannot be read .Permission denied'
  ):
    score_files.read(file)
