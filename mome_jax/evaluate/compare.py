"""Paired comparison of two and more evaluations of the same cases."""

import dataclasses
import math
import shlex
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.errors import suggest
from mome_jax.evaluate import (
  false_positives,
  mask_folders,
  metrics,
  patients,
  score_files,
  tables,
)
from mome_jax.evaluate.bootstrap import bootstrap_macro, joined

MEAN = 'mean over classes'
Row = Mapping[str, Any]  # of `score_files.read`
Key = tuple[str, str, str]  # dataset, case, class
_DECIMALS = 9  # differences that are equal as written differ in the last bit
_OF_MEANS = 'of the means of the patients, in which classes count by their scans'
_TOGETHER = 'Every scan is of another patient, unless the scores say otherwise.'
_PERMUTED = 13  # cases of which scipy's signed-rank test takes all permutations if any are tied


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of one metric in one class, or in the mean over classes.

  Attributes:
    metric: of `metrics.METRICS`.
    name: class, or `MEAN`.
    n: cases that both evaluations score with a finite number, see `compare`; all numbers down to
      `loss` are of these alone.
    patients: whose these cases are, a number.
    a, b: means; shares in [0, 1], or mm.
    difference: b - a.
    low, high: 95 % paired bootstrap interval of the difference, resampling patients; NaN where
      there are fewer than two. That of `MEAN` takes a class of one patient for certain, see
      `bootstrap.bootstrap_macro`.
    p: two-sided Wilcoxon signed-rank over patients; 1 where none differs, NaN without cases. That
      of `MEAN` is of their means, in which a class counts by its cases: it may contradict
      `difference`.
    win, tie, loss: cases in which B is better, equal and worse; n in all.
    a_infinite, b_infinite: distances that are infinite in A and in B, one mask being empty; those
      pairs are left out.
  """

  metric: str
  name: str
  n: int
  patients: int
  a: float
  b: float
  difference: float
  low: float
  high: float
  p: float
  win: int
  tie: int
  loss: int
  a_infinite: int
  b_infinite: int

  @property
  def is_empty(self) -> bool:
    """Whether neither side scores the class anywhere: no scan can show it."""
    return not (self.n or self.a_infinite or self.b_infinite)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Names of A and B, and their differences, metric by metric.

  Attributes:
    names: of both.
    differences: of each metric and class.
    false_masks: class -> `false_positives.summarize` of A and of B, of the classes that some scan
      does not hold.
  """

  names: tuple[str, str]
  differences: tuple[Difference, ...]
  false_masks: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = dataclasses.field(
    default_factory=dict
  )


def compare(
  a: Sequence[Row], b: Sequence[Row], *, names: tuple[str, str] = ('A', 'B')
) -> Comparison:
  """Paired differences B - A by class, and in the mean over classes.

  Cases are matched by dataset and name, and both sides must have scored the same classes in them,
  but for those that a scan cannot show, which one side may not know.
  Intervals resample whole patients, each case being of another one unless a side says that it has
  several (`patients.FIELD`); the test is Wilcoxon's signed-rank over the patients' mean differences
  (of the mean over classes: over all their scores). p is not corrected for the number of classes. A
  higher Dice and NSD and a lower HD95 win. HD95 is compared where both sides have a finite
  distance, wins and losses included; infinite ones, where a mask is empty, are counted beside them.

  A case in which reference and mask are both empty has no score, nor has a pair of two such. Where
  only one side is rightly empty, the other puts a mask where there is nothing, and has Dice and NSD
  0: the empty one counts as 1, in means, difference, wins, losses and test, so that inventing a
  structure costs as much as missing it. The mean of an evaluation by itself, which sees one side
  alone, leaves such a case out.

  Args:
    a: rows of `score_files.read`.
    b: those of the other side.
    names: of both, for messages and headings.

  Raises:
    ResultsError: if there are no scores, or splits, cases or classes differ.
  """
  _check_splits(a, b, names)
  a, b = _shown(a, b), _shown(b, a)
  _check_same({key(row) for row in a}, {key(row) for row in b}, names)
  place = {key(row): number for number, row in enumerate(a)}
  b = sorted(b, key=lambda row: place[key(row)])
  (cases, classes, first), (_, _, second) = map(metrics.tabulate, (a, b))
  whose = patients.of_cases([*b, *a], cases)
  differences = []
  for metric, kind in metrics.METRICS.items():
    sides = first[metric], second[metric]
    pair = (
      _best_where_empty(sides[0], first['dice'], sides[1], kind),
      _best_where_empty(sides[1], second['dice'], sides[0], kind),
    )
    better = 1 if kind.higher_is_better else -1
    for k, name in enumerate(classes):
      one, other = (side[:, [k]] for side in pair)
      differences.append(_difference(metric, name, one, other, better, whose))
    differences.append(_difference(metric, MEAN, *pair, better, whose))
  masks = lambda rows, name: false_positives.summarize(r for r in rows if r['class'] == name)
  false_masks = {name: (masks(a, name), masks(b, name)) for name in classes}
  return Comparison(
    names, tuple(differences), {name: pair for name, pair in false_masks.items() if all(pair)}
  )


def _shown(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
  """The rows, unscored where the other side declares that the scan cannot show the class.

  Of classes that a scan cannot show, those that the other side lacks are left out.
  """
  absent = {key(row): bool(row.get('absent')) for row in others}
  unscored = dict.fromkeys(metrics.METRICS, math.nan)
  kept = [row for row in rows if not row.get('absent') or key(row) in absent]
  return [{**row, **unscored} if absent.get(key(row)) else row for row in kept]


def _best_where_empty(
  scores: np.ndarray, dice: np.ndarray, others: np.ndarray, kind: metrics.Metric
) -> np.ndarray:
  """Scores (cases, classes), best where this side alone is rightly empty; see `compare`.

  NOTE: a metric that is no share has no such value; of it a pair needs two scores.

  Args:
    scores: of one side.
    dice: of that side; NaN tells that it is rightly empty, as older files lack metrics.
    others: scores of the other side.
    kind: of metric.
  """
  alone = np.isnan(dice) & ~np.isnan(others) & kind.share
  return np.where(alone, float(kind.higher_is_better), scores)


def of_sources(rows: Sequence[Row], sources: Sequence[str], name: str) -> Sequence[Row]:
  """The scores of some datasets; of all where none is named.

  Args:
    rows: of `score_files.read`.
    sources: names of datasets.
    name: of the evaluation, for messages.

  Raises:
    ResultsError: if a dataset has no scores.
  """
  known = sorted({row.get('source', '') for row in rows})
  for source in sources:
    if source not in known:
      raise score_files.ResultsError(f'{name}: no scores of {source!r}; {suggest(source, known)}')
  return [row for row in rows if row.get('source', '') in sources] if sources else rows


def of_classes(rows: Sequence[Row], classes: Sequence[str], name: str) -> Sequence[Row]:
  """The scores of some classes; of all where none is named.

  Args:
    rows: of `score_files.read`.
    classes: names or synonyms, as `score` takes them; an organ without its side means both.
    name: of the evaluation, for messages.

  Raises:
    ResultsError: if a class has no scores.
  """
  known = sorted({row['class'] for row in rows})
  meant = {mask_folders.canonical(one): one for one in known} | {one: one for one in known}
  chosen = set()
  for one in classes:
    noun = mask_folders.canonical(one)
    both = TEMPLATE.pairs().get(noun, ())
    called = [meant[word] for word in (one, noun) if word in meant][:1]
    called = called or [meant[side] for side in both if meant.keys() >= {*both}]
    if not called:
      raise score_files.ResultsError(f'{name}: no scores of {one!r}; {suggest(one, known)}')
    chosen.update(called)
  return [row for row in rows if row['class'] in chosen] if classes else rows


def key(row: Row) -> Key:
  """Dataset, case and class of a row."""
  return row.get('source', ''), row['case'], row['class']


def _check_splits(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str]) -> None:
  """Scans of different splits are never put side by side; older files do not name theirs."""
  splits = [sorted({split for row in rows if (split := row.get('split'))}) for rows in (a, b)]
  for several, name in zip(splits, names, strict=True):
    if len(several) > 1:
      raise score_files.ResultsError(
        f'{name}: scores of {" and ".join(several)} scans; compare one split'
      )
  if all(splits) and splits[0] != splits[1]:
    shown = [f'{name} scores {split} scans' for (split,), name in zip(splits, names, strict=True)]
    raise score_files.ResultsError(
      f'{", ".join(shown)}; evaluate both with the same config.evaluation.split, or name the '
      'evaluation folders'
    )


def _check_same(a: set[Key], b: set[Key], names: tuple[str, str]) -> None:
  for keys, name in ((a, names[0]), (b, names[1])):
    if not keys:
      raise score_files.ResultsError(f'{name}: no scores')
  if not {key[0] for key in a} & {key[0] for key in b} and {key[1] for key in a} == {
    key[1] for key in b
  }:
    called = [', '.join(sorted({key[0] for key in keys})) for keys in (a, b)]
    raise score_files.ResultsError(
      f'{names[1]}: has the cases of {names[0]}, but the datasets are called {called[0]} and '
      f'{called[1]}; score both with the same --dataset, or evaluate both with the same '
      'config.data.sources'
    )
  sides = (a, b, *names), (b, a, *names[::-1])
  for keys, others, name, without in sides:
    lacking = sorted({key[:2] for key in keys} - {key[:2] for key in others})
    if lacking:
      shown = ', '.join('/'.join(filter(None, key)) for key in lacking[:3])
      raise score_files.ResultsError(
        f'{without}: lacks {len(lacking)} cases of {name}, such as {shown}; evaluate both on the '
        f'same cases, or compare what both have, by {_in_common(a, b)}'
      )
  for keys, others, name, without in sides:
    missing = sorted(keys - others)
    if missing:
      _, case, class_name = missing[0]
      raise score_files.ResultsError(
        f'{without}: has no score of {class_name!r} in {case}, {name} has; evaluate both with '
        f'the same classes, or compare what both have, by {_in_common(a, b)}'
      )


def _in_common(a: set[Key], b: set[Key]) -> str:
  """Options that choose what both sides have scores of, with values where one alone does it."""
  options = []
  for option, part in (('--sources', 0), ('--classes', 2)):
    names = {key[part] for key in a & b} - {key[part] for key in a ^ b} - {''}
    if names:
      options.append(f'{option}={shlex.quote(",".join(sorted(names)))}')
  return ' or '.join(options) or '--sources and --classes'


def _difference(
  metric: str,
  name: str,
  a: np.ndarray,
  b: np.ndarray,
  better: int,
  whose: Sequence[Hashable],
) -> Difference:
  """Of scores (cases, classes), NaN where there is none, and of the patient of each case."""
  finite = np.isfinite(a) & np.isfinite(b)
  apart = np.where(finite, np.subtract(b, a, where=finite, out=np.zeros_like(a)), np.nan)
  per_case = apart[finite.any(1)]
  counts = finite.sum(1)[finite.any(1)]
  differences = np.nansum(per_case, 1) / counts if len(counts) else np.zeros(0)
  low, high = bootstrap_macro(apart, whose)
  sums, number = (joined(part, whose).sum(1) for part in (np.nan_to_num(apart), finite))
  of_patients = sums[number > 0] / number[number > 0]
  ranks = np.sign(np.round(differences, _DECIMALS)) * better
  mean_a, mean_b = (_macro(np.where(finite, side, np.nan)) for side in (a, b))
  return Difference(
    metric=metric,
    name=name,
    n=len(differences),
    patients=len(of_patients),
    a=mean_a,
    b=mean_b,
    difference=mean_b - mean_a,
    low=low,
    high=high,
    p=wilcoxon(of_patients),
    win=int((ranks > 0).sum()),
    tie=int((ranks == 0).sum()),
    loss=int((ranks < 0).sum()),
    a_infinite=int(np.isinf(a).sum()),
    b_infinite=int(np.isinf(b).sum()),
  )


def _macro(table: np.ndarray) -> float:
  return metrics.mean(np.array([metrics.mean(column) for column in table.T]))


def wilcoxon(differences: np.ndarray) -> float:
  """Two-sided p of Wilcoxon's signed-rank test (Pratt's zeros), exact for few untied cases."""
  differences = np.round(differences, _DECIMALS)
  if not len(differences):
    return math.nan
  if not differences.any():
    return 1.0
  from scipy import stats  # slow to import, and help quotes this module

  sizes = np.abs(differences)
  tied = not sizes.all() or len(np.unique(sizes)) < len(sizes)
  if tied and len(sizes) <= _PERMUTED:  # as scipy's own, which ranks anew in each permutation
    signed = np.sign(differences) * stats.rankdata(sizes)
    upper = lambda ranks, axis: np.maximum(ranks, 0).sum(axis)
    return float(stats.permutation_test((signed,), upper, permutation_type='samples').pvalue)
  return float(stats.wilcoxon(differences, zero_method='pratt').pvalue)


def to_markdown(comparison: Comparison) -> str:
  """One table each for Dice, NSD at 2 mm, HD95 and further metrics with a title."""
  header = ('class', 'n', 'A', 'B', 'B - A', 'p', 'win/tie/loss')
  a, b = comparison.names
  parts = [
    f'A: {a}  \nB: {b}  \nB - A with its 95 % paired bootstrap interval; p: Wilcoxon signed-rank '
    'test, not corrected for the number of classes; that of the mean over classes, as its wins, '
    f'ties and losses of scans, is {_OF_MEANS}. Where only one of them puts a mask into a scan '
    'without the class, the other counts as 100 %. HD95: of cases where both are finite; the last '
    f'column counts the infinite ones. {_TOGETHER}\n'
  ]
  for metric, kind in metrics.METRICS.items():
    if not kind.title:
      continue
    distance = math.isinf(kind.worst)
    scale = 100 if kind.share else 1
    rows = []
    for row in comparison.differences:
      if row.metric == metric and not (row.is_empty and row.name != MEAN):
        empty = math.isnan(row.difference)
        means = ['–' if empty else f'{scale * mean:.1f}' for mean in (row.a, row.b)]
        means.append(apart(row, scale))
        name = f'**{row.name}**' if row.name == MEAN else row.name
        cells = (name, row.n, *means, _p(row.p), f'{row.win}/{row.tie}/{row.loss}')
        infinite = (f'{row.a_infinite}/{row.b_infinite}',) if distance else ()
        rows.append((*cells, *infinite))
    columns = (*header, 'infinite A/B') if distance else header
    counts = of_interval(comparison, metric)
    parts.append(tables.markdown(kind.title, columns, rows) + tables.few_patients(counts))
  if comparison.false_masks:
    parts.append(_false_masks(comparison))
  return '\n'.join(parts)


def of_interval(comparison: Comparison, metric: str) -> dict[str, int]:
  """Class -> patients, of the classes in the interval of the mean; empty where there is none."""
  rows = {row.name: row for row in comparison.differences if row.metric == metric}
  mean = rows.pop(MEAN, None)
  if mean is None or math.isnan(mean.low):
    return {}
  return {name: row.patients for name, row in rows.items()}


def _false_masks(comparison: Comparison) -> str:
  """The table of masks in scans that do not hold the class."""
  limit = f'more than {false_positives.LIMIT_ML:g} ml'
  header = ('class', 'scans without it', f'A: {limit}', f'B: {limit}', 'A: mean ml', 'B: mean ml')
  rows = [
    (name, a['n'], a['n_above'], b['n_above'], *(tables.millilitres(x['mean_ml']) for x in (a, b)))
    for name, (a, b) in comparison.false_masks.items()
  ]
  return tables.markdown('Masks where the class is not', header, rows)


def _p(value: float) -> str:
  return '–' if math.isnan(value) else '< 0.001' if value < 1e-3 else f'{value:.3f}'


def apart(row: Difference, scale: float = 100) -> str:
  """B - A with its interval, where there are such; shares in percent unless scaled otherwise."""
  if math.isnan(row.difference):
    return '–'
  interval = f' [{scale * row.low:+.1f}, {scale * row.high:+.1f}]'
  return f'{scale * row.difference:+.1f}' + ('' if math.isnan(row.low) else interval)


def overview(runs: Mapping[str, Sequence[Row]]) -> str:
  """Two tables of several evaluations of the same cases, one line each, in Markdown.

  The first holds the means over classes and, but for the first run, the paired difference to it;
  the second the Dice of every class. Means are those of `metrics.summarize`, of each run alone, and
  differences those of `compare`: they part where only one of two runs is rightly empty.

  Args:
    runs: name -> rows of `score_files.read`; the first is the reference.

  Raises:
    ResultsError: as `compare`.
  """
  (first, reference), *_ = runs.items()
  scored = (row['class'] for row in reference if not row.get('absent'))  # the others have no Dice
  names = list(dict.fromkeys(scored))
  means, classes = [], []
  counts: dict[str, int] = {}  # the fewest patients of each class in the mean of a run
  for name, rows in runs.items():
    cells = ('', '')
    if name != first:
      pair = compare(reference, rows, names=(first, name))
      row = next(d for d in pair.differences if (d.metric, d.name) == ('dice', MEAN))
      cells = (apart(row), _p(row.p))
    summary = metrics.summarize(rows)
    dice = tables.percent(summary['mean_dice'], summary['mean_dice_interval'])
    nsd = tables.percent(summary['mean_nsd'], summary['mean_nsd_interval'])
    means.append((name, dice, nsd, *cells))
    for k in names if summary['mean_dice_interval'][0] is not None else ():
      if n := summary['classes'][k]['n_patients']:
        counts[k] = min(counts.get(k, n), n)
    classes.append((name, *(tables.percent(summary['classes'][k]['dice']) for k in names)))
  header = ('run', 'Dice %', 'NSD 2 mm %', 'Dice - first', 'p')
  note = (
    '95 % bootstrap intervals over patients, of differences paired; p: Wilcoxon signed-rank test '
    f'{_OF_MEANS}, not corrected for the number of runs. A scan without the class has no score '
    'where a run puts no mask; in a difference to a run that puts one, it counts as 100 %. '
    f'{_TOGETHER}\n'
  )
  both = [
    tables.markdown('Means over classes', header, means) + tables.few_patients(counts),
    tables.markdown('Dice %', ('run', *names), classes),
  ]
  return '\n'.join([note, *both])


def to_csv(comparisons: Sequence[Comparison]) -> str:
  """One line for every B, metric and class; empty where a number is not defined."""
  fields = ['run', *(field.name for field in dataclasses.fields(Difference))]
  rows = [
    {k: '' if isinstance(v, float) and math.isnan(v) else v for k, v in vars(row).items()}
    | {'run': comparison.names[1], 'class': row.name}
    for comparison in comparisons
    for row in comparison.differences
  ]
  return tables.csv_text(['class' if f == 'name' else f for f in fields], rows)
