"""Evaluation folders: what stands in them is whole."""

import numpy as np
import pytest
from etils import epath

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
