"""What is said of a fine-tuned model, of scores made by hand."""

import math

import pytest

from mome_jax.evaluate import metrics, score_files
from mome_jax.finetune import verdict


def rows(**dice):
  """Rows of scans a, b, ...; of each class the Dice in the first of them."""
  empty = dict.fromkeys(metrics.METRICS, math.nan)
  return [
    {'source': 'mine', 'case': case, 'split': 'validation', 'class': name} | empty | {'dice': value}
    for name, values in dice.items()
    for case, value in zip('abcdefgh', values, strict=False)
  ]


def test_better():
  result = verdict.judge(rows(liver=(0.5, 0.7)), rows(liver=(0.6, 0.8)), ())
  assert result.mean.difference == pytest.approx(0.1)
  assert not result.worse and not result.keeps_start
  text = '\n'.join(result.lines())
  assert '60.0' in text and '70.0' in text and '+10.0' in text and 'WORSE' not in text


def test_worse_keeps_the_start():
  result = verdict.judge(rows(liver=(0.6, 0.8)), rows(liver=(0.5, 0.7)), ())
  assert result.worse and result.keeps_start
  assert 'WORSE THAN THE START: mean Dice 70.0 -> 60.0' in result.lines()[-1]
  assert 'The exported model is the START' in result.lines()[-1]
  assert 'do not tell' not in result.lines()[-1]  # both scans lost a tenth


def test_a_loss_that_few_patients_do_not_tell_is_called_so():
  result = verdict.judge(rows(liver=(0.6, 0.8)), rows(liver=(0.7, 0.6)), ())
  assert result.worse
  # -5 in the mean; of two scans, +10 and -20, the bootstrap interval spans both.
  assert '(-5.0 [-20.0, +10.0]: 2 patients do not tell it from no change)' in result.lines()[-1]


def test_a_loss_in_a_class_of_one_scan_is_in_doubt():
  """Liver stays the same, and spleen, in one scan, falls: the interval is [-5, -5]."""
  start, tuned = (rows(liver=(0.7, 0.7)) + rows(spleen=(dice, math.nan))[:1] for dice in (0.5, 0.4))
  result = verdict.judge(start, tuned, ())
  assert result.mean.high < 0
  assert '(-5.0 [-5.0, -5.0], which takes spleen for certain: the one patient' in result.lines()[-1]
  assert 'too narrow**: few patients show liver (2), spleen (1).' in result.lines()[0]
  alone = verdict.judge(start[:1], rows(liver=(0.6, 0.7))[:1], ())
  assert '(-10.0: one patient does not tell it from no change)' in alone.lines()[-1]
  both = [
    [row | {'patient': 'mine/a'} for row in rows(liver=dice)] for dice in ((0.6, 0.8), (0.5, 0.6))
  ]
  assert '(-15.0: one patient does not tell' in verdict.judge(*both, ()).lines()[-1]


def test_two_scans_of_one_patient_do_not_tell_more_than_one():
  start, tuned = (
    [
      row | ({'patient': 'mine/a'} if row['case'] in 'ab' else {})
      for row in rows(liver=(liver,) * 8) + rows(spleen=spleen)
    ]
    for liver, spleen in ((0.90, (0.9, 0.8)), (0.89, (0.5, 0.7)))
  )
  lines = verdict.judge(start, tuned, ()).lines()
  assert 'which takes spleen for certain: the one patient' in lines[-1]
  assert 'few patients show spleen (1). A class of one patient counts' in lines[0]


def test_worse_with_a_new_class_is_exported_and_said():
  tuned = rows(liver=(0.5, 0.7), spleen=(0.9, 0.9))
  result = verdict.judge(rows(liver=(0.6, 0.8)), tuned, ('spleen',))
  assert result.worse and not result.keeps_start
  assert 'does not know spleen' in result.lines()[-1]


def test_a_class_that_lost_is_named_though_the_mean_rose():
  start, tuned = (
    rows(liver=(0.5, 0.5), spleen=(0.9, 0.9)),
    rows(liver=(0.9, 0.9), spleen=(0.8, 0.8)),
  )
  result = verdict.judge(start, tuned, ())
  assert not result.worse
  assert result.lines()[-1] == 'Better in the mean, but worse in: spleen'


def test_a_class_that_only_the_start_has_scores_of_is_left_out():
  start = rows(liver=(0.5, 0.7), brainstem=(math.nan, 0.0))  # declared absent: no class of the new
  result = verdict.judge(start, rows(liver=(0.6, 0.8)), ())
  assert result.mean.difference == pytest.approx(0.1)


def test_a_model_that_invents_a_structure_is_worse():
  start = rows(liver=(0.8, 0.8), spleen=(0.9, math.nan))
  result = verdict.judge(start, rows(liver=(0.8, 0.8), spleen=(0.9, 0.0)), ())
  assert result.worse and result.mean.difference == pytest.approx(-1 / 4)
  assert 'lost: spleen' in result.lines()[-1]


def test_what_cannot_be_compared():
  nothing = verdict.judge([], rows(spleen=(0.9, 0.9)), ('spleen',))
  assert not nothing.worse and nothing.lines()[0].startswith('NOT COMPARED')
  empty = verdict.judge(rows(liver=(math.nan,) * 2), rows(liver=(math.nan,) * 2), ())
  assert not empty.worse and empty.lines()[0].startswith('NOT COMPARED')


def test_other_scans_are_not_compared():
  with pytest.raises(score_files.ResultsError, match='lacks 1 cases'):
    verdict.judge(rows(liver=(0.5, 0.5)), rows(liver=(0.5, 0.5))[:1], ())
