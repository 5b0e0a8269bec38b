"""Paired differences by hand, against scipy, and through the command line."""

import csv
import math

import numpy as np
import pytest
import scipy.stats

from mome_jax import evaluate
from mome_jax.evaluate import bootstrap, compare, metrics, score_files

NAN = math.nan


def rows(**scores):
  """Class -> one (Dice, HD95) a case; the NSDs are half the Dice."""
  return [
    {'source': 's', 'case': f'c{i}', 'split': '', 'class': name, 'dice': dice, 'nsd_1mm': dice / 2,
     'nsd': dice / 2, 'nsd_3mm': dice / 2, 'hd95_mm': hd95,
     'lesions': None, 'found': None, 'predicted': None, 'absent': False, 'false_positive_ml': None,
     'patient': ''}
    for name, values in scores.items()
    for i, (dice, hd95) in enumerate(values)
  ]  # fmt: skip


A = rows(
  liver=[(0.8, 4.0), (0.6, 6.0), (0.5, 9.0), (0.0, math.inf)],
  spleen=[(0.5, 2.0), (NAN, NAN), (0.7, 2.0), (0.9, 1.0)],
)
B = rows(
  liver=[(0.9, 3.0), (0.6, 8.0), (0.4, 9.0), (0.2, 12.0)],
  spleen=[(0.7, 2.0), (0.0, math.inf), (0.9, 1.0), (0.9, 1.0)],
)


def difference_of(a, b, metric, name):
  differences = compare.compare(a, b).differences
  return next(d for d in differences if (d.metric, d.name) == (metric, name))


def test_differences_by_hand():
  liver = difference_of(A, B, 'dice', 'liver')
  assert (liver.n, liver.win, liver.tie, liver.loss) == (4, 2, 1, 1)
  assert liver.a == pytest.approx(0.475) and liver.b == pytest.approx(0.525)
  assert liver.difference == pytest.approx(0.05)
  spleen = difference_of(A, B, 'dice', 'spleen')  # of the second case A has no score: it counts 1
  assert (spleen.n, spleen.win, spleen.tie, spleen.loss) == (4, 2, 1, 1)
  assert spleen.difference == pytest.approx((0.2 - 1 + 0.2 + 0) / 4)
  mean = difference_of(A, B, 'dice', compare.MEAN)  # of the classes' differences
  assert mean.difference == pytest.approx((0.05 - 0.15) / 2)
  assert (mean.n, mean.win, mean.tie, mean.loss) == (4, 3, 0, 1)  # of the cases' means


PERFECT, NOTHING, INVENTED = (1.0, 0.0), (NAN, NAN), (0.0, math.inf)


def test_a_structure_that_one_side_invents_costs_what_a_missed_one_does():
  a = rows(spleen=[PERFECT] * 2 + [NOTHING] * 4)
  b = rows(spleen=[PERFECT] * 2 + [INVENTED] * 4)
  for metric, best in (('dice', 1.0), ('nsd', 1.0)):
    row = difference_of(a, b, metric, 'spleen')
    assert (row.n, row.win, row.tie, row.loss) == (6, 0, 2, 4)
    assert row.a >= 5 / 6 and row.difference == pytest.approx(-4 * best / 6)
    assert row.low < row.high < 0
  assert difference_of(a, b, 'dice', 'spleen').b == pytest.approx(1 / 3)
  distance = difference_of(a, b, 'hd95_mm', 'spleen')
  assert (distance.n, distance.a_infinite, distance.b_infinite) == (2, 0, 4)
  back = difference_of(b, a, 'dice', 'spleen')
  assert (back.win, back.loss, back.difference) == (4, 0, pytest.approx(4 / 6))
  overview = compare.overview({'a': a, 'b': b})
  # Each run alone as `metrics.summarize` has it, and the difference of all six pairs.
  assert '| a | 100.0' in overview and '| b | 33.3' in overview and '-66.7 [' in overview
  both = difference_of(a, a, 'dice', 'spleen')
  assert (both.n, both.tie) == (2, 2)  # nothing is right or wrong where both are empty


def test_what_counts_as_empty_is_known_by_its_dice():
  """Of a metric that one side was scored without, or a class out of view, nothing is known."""
  a, b = rows(liver=[(0.5, 1.0)] * 3), rows(liver=[(0.5, 1.0)] * 3)
  older = [row | {'nsd': NAN} for row in a]
  assert difference_of(older, b, 'nsd', 'liver').n == 0
  out_of_view = rows(spleen=[NOTHING] * 3), rows(spleen=[INVENTED] * 3)
  declared = [row | {'absent': True, 'false_positive_ml': 2.0} for row in out_of_view[0]]
  for pair in ((declared, out_of_view[1]), (out_of_view[1], declared)):
    assert difference_of(*pair, 'dice', 'spleen').n == 0
    assert difference_of(*pair, 'hd95_mm', 'spleen').b_infinite == 0


def test_a_shorter_distance_wins_and_infinite_ones_are_counted_beside():
  # 4 -> 3, 6 -> 8, 9 -> 9; inf -> 12 is no pair.
  liver = difference_of(A, B, 'hd95_mm', 'liver')
  assert (liver.n, liver.win, liver.tie, liver.loss) == (3, 1, 1, 1)
  assert (liver.a_infinite, liver.b_infinite) == (1, 0)
  assert liver.difference == pytest.approx((-1 + 2 + 0) / 3)
  same = difference_of(A, A, 'hd95_mm', 'liver')
  assert (same.win, same.tie, same.loss, same.difference, same.p) == (0, 3, 0, 0.0, 1.0)
  assert (same.a_infinite, same.b_infinite) == (1, 1)
  text = compare.to_markdown(compare.compare(A, B))
  lines = text[text.index('### HD95') :].splitlines()
  assert lines[2].endswith('| win/tie/loss | infinite A/B |')
  assert next(line for line in lines if line.startswith('| liver')).endswith('| 1/1/1 | 1/0 |')
  assert 'infinite' not in text[text.index('### Dice') : text.index('### HD95')]


def test_wins_agree_with_the_mean_where_a_class_is_missed():
  """B is nearer in the two cases that it finds, and misses the other two."""
  a = rows(liver=[(0.8, 4.0), (0.8, 4.0), (0.8, 4.0), (0.8, 4.0)])
  b = rows(liver=[(0.9, 3.0), (0.9, 3.0), (0.0, math.inf), (0.0, math.inf)])
  for name in ('liver', compare.MEAN):
    row = difference_of(a, b, 'hd95_mm', name)
    assert (row.difference, row.win, row.tie, row.loss) == (-1.0, 2, 0, 0)
    assert (row.a_infinite, row.b_infinite) == (0, 2)


def test_one_case_has_no_interval(tmp_path, capsys):
  a, b = rows(liver=[(0.75, 4.0)]), rows(liver=[(0.5, 3.0)])
  assert evaluate.main(['compare', write(tmp_path / 'a', a), write(tmp_path / 'b', b)]) == 0
  assert '| liver | 1 | 75.0 | 50.0 | -25.0 | 1.000 | 0/0/1 |' in capsys.readouterr().out


def test_interval_and_test_are_those_of_the_paired_differences():
  rng = np.random.default_rng(0)
  a, b = rng.uniform(0.5, 0.9, (2, 9))
  sides = [rows(liver=[(dice, 1.0) for dice in side]) for side in (a, b)]
  liver = difference_of(*sides, 'dice', 'liver')
  assert (liver.low, liver.high) == bootstrap.bootstrap_interval(b - a)
  assert liver.p == scipy.stats.wilcoxon(b, a).pvalue
  back = difference_of(*sides[::-1], 'dice', 'liver')
  assert back.difference == pytest.approx(-liver.difference)
  assert (back.win, back.loss, back.p) == (liver.loss, liver.win, liver.p)
  mixed = [side[::-1] if n else side[3:] + side[:3] for n, side in enumerate(sides)]
  assert difference_of(*mixed, 'dice', 'liver') == liver
  assert difference_of(*mixed[::-1], 'dice', 'liver') == back


def test_a_class_that_some_scans_lack_has_the_interval_of_its_evaluation():
  rng = np.random.default_rng(1)
  dice = np.where(np.arange(12) % 3, rng.uniform(0.2, 0.9, 12), NAN)
  liver = [(0.9, 1.0)] * 12
  one = rows(liver=liver, spleen=[(value, 1.0) for value in dice])
  nothing = rows(liver=liver, spleen=[(value * 0, 1.0) for value in dice])
  spleen = difference_of(nothing, one, 'dice', 'spleen')
  alone = metrics.summarize(one)['classes']['spleen']
  assert spleen.n == alone['n'] == 8
  assert [spleen.low, spleen.high] == alone['dice_interval']


def test_scans_of_one_patient_count_together(tmp_path):
  """Five patients of three scans, all better by as much: 15 scans would make p 2 / 2^15."""
  dice = np.arange(1, 16) / 40
  a, b = (rows(liver=[(0.2 + more, 1.0) for more in side]) for side in (dice * 0, dice))
  named = [row | {'patient': f's/c{number // 3 * 3}'} for number, row in enumerate(b)]
  apart, together = difference_of(a, b, 'dice', 'liver'), difference_of(a, named, 'dice', 'liver')
  assert (apart.p, together.p) == (pytest.approx(2 / 2**15), pytest.approx(2 / 2**5))
  assert (together.n, together.win, together.difference) == (15, 15, apart.difference)
  patients = [float(part.mean()) for part in dice.reshape(5, 3)]
  assert (together.low, together.high) == pytest.approx(bootstrap.bootstrap_interval(patients))
  write(tmp_path / 'b', named)
  assert score_files.read(tmp_path / 'b') == named
  alone = metrics.summarize(named)['classes']['liver']
  assert alone['dice_interval'] == pytest.approx([0.2 + together.low, 0.2 + together.high])


@pytest.mark.parametrize('seed', range(4))
def test_tied_cases_are_tested_as_scipy_does(seed):
  rng = np.random.default_rng(seed)
  for n in (1, 3, 5, 8, 20):
    differences = rng.integers(-2, 4, n) / 8
    if differences.any():
      expected = scipy.stats.wilcoxon(differences, zero_method='pratt').pvalue
      assert compare.wilcoxon(differences) == pytest.approx(expected, rel=1e-12)


def test_the_test_by_hand():
  # Five differences of one sign: of 2^5 signs two are as extreme.
  assert compare.wilcoxon(np.arange(1.0, 6)) == pytest.approx(2 / 2**5)
  assert compare.wilcoxon(np.zeros(4)) == 1.0
  assert compare.wilcoxon(np.full(4, 1e-17)) == 1.0
  # Six of eight equal differences of one sign are as in 2 (28 + 8 + 1) of 2^8, whatever their bits.
  better = np.arange(2, 8) / 10 - np.arange(1, 7) / 10
  assert len(np.unique(better)) > 1
  assert compare.wilcoxon(np.append(better, [-0.1, -0.1])) == pytest.approx(74 / 2**8)
  assert math.isnan(compare.wilcoxon(np.zeros(0)))


def test_a_class_of_one_case_is_named_where_the_interval_takes_it_for_certain():
  """It alone makes the mean fall, by 0.05 without doubt; the test is of cases, and sees none."""
  liver = [(0.9, 3.0)] * 8
  a, b = rows(liver=liver, spleen=[(0.5, 3.0)]), rows(liver=liver, spleen=[(0.4, 3.0)])
  mean = difference_of(a, b, 'dice', compare.MEAN)
  assert (mean.difference, mean.low, mean.high) == pytest.approx((-0.05,) * 3) and mean.p == 1.0
  few = '**The interval of the mean over classes is too narrow**: few patients show spleen (1). '
  text, table = compare.to_markdown(compare.compare(a, b)), compare.overview({'a': a, 'b': b})
  assert text.count(few) == 3 and table.count(few) == 1  # Dice, NSD, HD95
  assert table.index('### Means over classes') < table.index(few) < table.index('### Dice %')
  for shown in (text, table):
    assert 'of the means of the patients, in which classes count by their scans' in shown
  alone = compare.compare(rows(spleen=[(0.5, 3.0)]), rows(spleen=[(0.4, 3.0)]))
  assert 'too narrow' not in compare.to_markdown(alone)  # it has no interval


def test_cases_are_matched_by_name_not_by_order():
  shuffled = [B[i] for i in np.random.default_rng(1).permutation(len(B))]
  assert compare.compare(A, shuffled).differences == compare.compare(A, B).differences


def write(folder, scores):
  score_files.write(folder / 'evaluation', scores, title='', origin={})
  return str(folder)


def test_command(tmp_path, capsys):
  a, b = write(tmp_path / 'a', A), write(tmp_path / 'b', B)
  assert evaluate.main(['compare', a, f'{b}/evaluation', '--output', str(tmp_path / 'out')]) == 0
  printed = capsys.readouterr().out
  assert '| liver | 4 | 47.5 | 52.5 | +5.0 [' in printed and '| 2/1/1 |' in printed
  assert '| **mean over classes** |' in printed
  assert (tmp_path / 'out/comparison.md').read_text() in printed
  with (tmp_path / 'out/comparison.csv').open() as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 5 * 3
  assert float(lines[0]['difference']) == pytest.approx(0.05)
  assert (lines[0]['metric'], lines[0]['class'], lines[0]['win']) == ('dice', 'liver', '2')


def test_several_runs_are_lines_of_one_table(tmp_path, capsys):
  a, b, c = (write(tmp_path / name, scores) for name, scores in zip('abc', (A, B, A), strict=True))
  assert evaluate.main(['compare', a, b, c, '--output', str(tmp_path / 'out')]) == 0
  lines = capsys.readouterr().out.splitlines()
  means = {run: next(line for line in lines if line.startswith(f'| {run} |')) for run in 'abc'}
  mean = difference_of(A, B, 'dice', compare.MEAN)
  apart = [f'{100 * v:+.1f}' for v in (mean.difference, mean.low, mean.high)]
  assert '{} [{}, {}]'.format(*apart) in means['b'] and '+0.0 [+0.0, +0.0] | 1.000' in means['c']
  assert means['a'].endswith('| | |')  # the reference
  assert '| b | 52.5 | 62.5 |' in lines  # of spleen B scores a case that A does not
  with (tmp_path / 'out/comparison.csv').open() as file:
    assert [line['run'] for line in csv.DictReader(file)] == [b] * 15 + [c] * 15


def test_a_folder_that_shares_nothing_with_the_others_keeps_its_whole_name(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / 'a', A)
  (tmp_path / str(tmp_path)[1:]).parent.mkdir(parents=True)
  (tmp_path / str(tmp_path)[1:]).symlink_to(tmp_path)
  assert evaluate.main(['compare', str(tmp_path / 'a'), str(tmp_path / 'a')[1:], 'a']) == 0
  told = capsys.readouterr().out
  for name in (tmp_path / 'a', str(tmp_path / 'a')[1:], 'a'):
    assert f'\n| {name} | ' in told


def test_scores_survive_the_file(tmp_path):
  write(tmp_path, A)
  for row, again in zip(A, score_files.read(tmp_path / 'evaluation/cases.csv'), strict=True):
    np.testing.assert_equal(again, row)


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    (B[1:], r"b: has no score of 'liver' in c0, a has; evaluate both with the same classes"),
    ([r for r in B if r['case'] != 'c3'], r'b: lacks 1 cases of a, such as s/c3; evaluate both'),
    ([*B, {**B[0], 'case': 'new'}], r'a: lacks 1 cases of b, such as s/new'),
    ([], r'b: no scores'),
  ],
)
def test_sets_that_differ_are_named(other, message):
  with pytest.raises(score_files.ResultsError, match=message):
    compare.compare(A, other, names=('a', 'b'))


def test_files_that_are_no_scores_are_named(tmp_path, capsys):
  assert evaluate.main(['compare', str(tmp_path), str(tmp_path)]) == 1
  assert 'no cases.csv there; name a workdir' in capsys.readouterr().err
  path = tmp_path / 'cases.csv'
  path.write_text('case,class\na,liver\n')
  with pytest.raises(score_files.ResultsError, match="cases.csv: no column 'dice'"):
    score_files.read(path)
  write(tmp_path, A)
  text = (tmp_path / 'evaluation/cases.csv').read_text()
  path.write_text(text.replace('0.6', 'six', 1))
  with pytest.raises(score_files.ResultsError, match="cases.csv: line 3: .*'six'; evaluate again"):
    score_files.read(path)
  lines = text.splitlines()
  path.write_text('\n'.join([*lines[:-1], ','.join(lines[-1].split(',')[:4])]))  # a copy cut off
  told = rf'cases.csv: line {len(lines)}: has not as many fields as the first line; evaluate again'
  with pytest.raises(score_files.ResultsError, match=told):
    score_files.read(path)


def test_classes_that_no_scan_can_show_have_volumes_alone():
  absent = {'dice': NAN, 'nsd_1mm': NAN, 'nsd': NAN, 'nsd_3mm': NAN, 'hd95_mm': NAN, 'absent': True}

  def with_bladder(side, volumes):
    more = [
      {**row, **absent, 'class': 'bladder', 'false_positive_ml': ml}
      for row, ml in zip(side[:4], volumes, strict=True)
    ]
    return [*side, *more]

  a, b = with_bladder(A, (0.0, 3.0, 0.5, 8.5)), with_bladder(B, (0.0, 0.0, 1.0, 3.0))
  comparison = compare.compare(a, b)
  text = compare.to_markdown(comparison)
  assert text.count('bladder') == 1
  assert '| bladder | 4 | 2 | 1 | 3.0 | 1.0 |' in text
  assert comparison.differences[-1].difference == compare.compare(A, B).differences[-1].difference
  assert 'bladder' not in compare.overview({'a': a, 'b': b})
  assert 'Masks where' not in compare.to_markdown(compare.compare(A, B))
  # One side may know of a class that no scan can show, and the other not.
  for pair in ((a, B), (A, b)):
    assert compare.compare(*pair) == compare.compare(A, B)


def test_one_dataset_of_several(tmp_path, capsys):
  other = lambda side: [{**row, 'source': 'chests', 'dice': row['dice'] / 2} for row in side[:4]]
  a, b = (write(tmp_path / name, [*s, *other(s)]) for name, s in (('a', A), ('b', B)))
  assert evaluate.main(['compare', a, b, '--sources', 's']) == 0
  alone = capsys.readouterr().out
  assert evaluate.main(['compare', a, b]) == 0
  assert '| liver | 4 | 47.5 | 52.5 |' in alone
  assert '| liver | 8 | 35.6 | 39.4 |' in capsys.readouterr().out
  assert evaluate.main(['compare', a, b, '--sources', 's, chest']) == 1
  assert "no scores of 'chest'; did you mean chests?" in capsys.readouterr().err


def test_one_class_more_is_left_out_as_the_error_says(tmp_path, capsys):
  """Also where a scan shows that class alone, so that the other model has no score of it."""
  more = rows(mandible=[(0.5, 1.0)] * 5)
  a, b = write(tmp_path / 'a', [*A, *more]), write(tmp_path / 'b', B)
  for side in (a, b), (b, a):
    assert evaluate.main(['compare', *side]) == 1
    told = capsys.readouterr().err
    assert 'lacks 1 cases' in told and told.endswith('by --classes=liver,spleen\n')
  assert evaluate.main(['compare', a, b, '--classes=liver,spleen']) == 0
  assert '| **mean over classes** | 4 |' in capsys.readouterr().out
  assert evaluate.main(['compare', a, b, b, '--classes=Hepatic, spleens']) == 1
  assert f"{a}: no scores of 'Hepatic'; " in capsys.readouterr().err
  assert evaluate.main(['compare', a, b, '--classes', 'Spleen']) == 0
  assert 'liver' not in capsys.readouterr().out
  assert evaluate.main(['compare', a, b, '--classes=mandible']) == 1
  assert f"{b}: no scores of 'mandible'; known: liver, spleen" in capsys.readouterr().err


def test_classes_are_named_by_their_synonyms_or_as_they_are_written():
  scores = rows(**{'left kidney': [(0.5, 1.0)], 'PTV_70': [(0.5, 1.0)]})
  of = lambda *names: [row['class'] for row in compare.of_classes(scores, names, 'a')]
  assert of() == ['left kidney', 'PTV_70']
  assert of('kidney_left') == of('Left Kidney') == ['left kidney']
  assert of('PTV_70') == of('ptv 70') == ['PTV_70']
  with pytest.raises(score_files.ResultsError, match="no scores of 'kidneys'; known"):
    of('kidneys')
  scores += rows(**{'right kidney': [(0.5, 1.0)]})
  assert of('kidneys') == of('kidney', 'left kidney') == ['left kidney', 'right kidney']


def test_what_both_have_is_told_where_datasets_differ(tmp_path, capsys):
  other = [{**row, 'source': 'chests'} for row in A]
  a, b = write(tmp_path / 'a', [*A, *other]), write(tmp_path / 'b', B)
  assert evaluate.main(['compare', a, b]) == 1
  told = capsys.readouterr().err
  assert 'lacks 4 cases' in told and told.endswith('what both have, by --sources=s\n')
  more = rows(mandible=[(0.5, 1.0)] * 4)
  with pytest.raises(score_files.ResultsError, match='by --sources and --classes$'):
    compare.compare([*A, *other, *more], B)  # of neither dataset both have all classes
  with pytest.raises(score_files.ResultsError, match="by --classes='left kidney,liver'$"):
    common = {'left kidney': [(0.5, 1.0)], 'liver': [(0.5, 1.0)]}
    compare.compare(rows(**common, spleen=[(0.5, 1.0)]), rows(**common))
