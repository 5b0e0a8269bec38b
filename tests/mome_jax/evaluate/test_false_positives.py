"""Masks where a class is not: their volumes, and that they are in no mean."""

import csv
import math

import numpy as np
import pytest

from mome_jax.evaluate import false_positives, metrics, score_files, tables

SPACING = (2.0, 2.0, 2.5)  # 100 voxels are 1 ml


def row(case, name, predicted, true, *, absent=False, source='a'):
  """Of masks with so many voxels."""
  masks = []
  for number in (predicted, true):
    mask = np.zeros((10, 10, 10), bool)
    mask.ravel()[:number] = True
    masks.append(mask)
  return score_files.score(source, case, name, *masks, SPACING, absent=absent)


def rows():
  return [
    row('1', 'liver', 400, 400),
    row('2', 'liver', 300, 0, absent=True),
    row('3', 'liver', 0, 0, absent=True),
    row('1', 'bladder', 50, 0, absent=True),
    row('2', 'bladder', 0, 0, absent=True),
    row('1', 'liver tumor', 250, 0),
    row('2', 'liver tumor', 700, 0, absent=True),
  ]


def test_what_cannot_be_there_has_a_volume_and_no_dice():
  one = row('2', 'liver', 300, 0, absent=True)
  assert math.isnan(one['dice']) and math.isnan(one['hd95_mm'])
  assert one['false_positive_ml'] == pytest.approx(3.0)
  assert row('1', 'liver', 400, 400)['false_positive_ml'] is None
  # Labelled, and without a voxel: both.
  assert row('1', 'liver', 250, 0)['dice'] == 0.0
  assert row('1', 'liver', 250, 0)['false_positive_ml'] == pytest.approx(2.5)


def test_means_are_of_what_can_be_there():
  summary = metrics.summarize(rows())
  liver, bladder, tumor = summary['classes'].values()
  assert (liver['dice'], liver['n'], liver['n_both_empty']) == (1.0, 1, 0)
  assert liver['false_positives'] == {
    'n': 2, 'n_absent': 2, 'n_above': 1, 'mean_ml': 1.5, 'max_ml': 3.0,
  }  # fmt: skip
  assert (bladder['dice'], bladder['n'], bladder['n_both_empty']) == (None, 0, 0)
  assert bladder['false_positives']['n_above'] == 0  # half a milliliter
  assert bladder['false_positives']['max_ml'] == pytest.approx(0.5)
  # A scan that cannot show the organ is no healthy one of the detection.
  assert tumor['detection']['n_healthy'] == 1
  assert (tumor['dice'], tumor['false_positives']['n']) == (0.0, 2)
  assert summary['mean_dice'] == 0.5  # liver and its tumor
  assert false_positives.summarize([row('1', 'liver', 5, 5)]) == {}


def test_tables(tmp_path):
  summary, table = score_files.write(tmp_path, rows(), title='Title', origin={})
  scores, _, volumes = table.split('### ')[1:]
  assert '| bladder |' not in scores and '| liver |' in scores
  assert '| liver | 2 | 2 | 1 | 1.5 | 3.0 |' in volumes
  assert '| liver tumor | 2 | 1 | 2 | 4.8 | 7.0 |' in volumes
  (line,) = (
    r
    for r in csv.DictReader(tables.to_csv(summary).splitlines())
    if r['class'] == 'bladder' and r['dataset'] == 'all'
  )
  assert (line['false_positive_n'], line['false_positive_max_ml']) == ('2', '0.5')
  for before, after in zip(rows(), score_files.read(tmp_path), strict=True):
    assert before['absent'] == after['absent']
    assert before['false_positive_ml'] == pytest.approx(after['false_positive_ml'])
  assert metrics.summarize(score_files.read(tmp_path)) == metrics.summarize(rows())


def test_scores_that_a_spreadsheet_saved_are_the_same(tmp_path):
  score_files.write(tmp_path, rows(), title='Title', origin={})
  file, before = tmp_path / score_files.CASES, score_files.read(tmp_path)
  text = file.read_text().replace(',True,', ',TRUE,').replace(',False,', ',FALSE,')
  file.write_text('\ufeff' + text.replace('\n', '\r\n'))
  assert any(row['absent'] for row in before) and ',TRUE,' in text
  np.testing.assert_equal(score_files.read(tmp_path), before)


def test_older_files_had_no_volumes(tmp_path):
  score_files.write(tmp_path, rows(), title='Title', origin={})
  file = tmp_path / score_files.CASES
  lines = list(csv.reader(file.read_text().splitlines()))
  cut = lines[0].index('absent')
  file.write_text('\n'.join(','.join(line[:cut]) for line in lines) + '\n')
  assert {(r['absent'], r['false_positive_ml']) for r in score_files.read(tmp_path)} == {
    (False, None)
  }


def test_small_false_masks_are_no_empty_ones():
  told = [tables.millilitres(volume) for volume in (0.0, 0.0004, 0.04, 0.1, 12.34)]
  assert told == ['0.0', '0.0004', '0.04', '0.1', '12.3']
