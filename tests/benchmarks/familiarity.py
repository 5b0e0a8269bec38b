"""How well the familiarity of a prompt tells what a model was trained on from all else.

PYTHONPATH=. python tests/benchmarks/familiarity.py --output docs/results/familiarity

Prints Markdown tables and draws ROC curves, of the testing half of held-out names and other words,
which calibration never saw, all asked as free text: nothing is looked up. Names that nobody planned
(`unplanned_names.csv`: lay words, typing errors) are counted apart.
"""

import argparse
import csv
import pathlib
import sys

import matplotlib
import numpy as np
from scipy import stats

from input_pipeline.anatomy import TEMPLATE, vocabulary
from mome_jax import checkpoint, shipped
from mome_jax.text import other_words
from mome_jax.text.calibrate import Trials, random_sets
from mome_jax.text.familiarity import Comparison, features, shipped_calibration

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

UNPLANNED = pathlib.Path(__file__).with_name('unplanned_names.csv')
ENGLISH = {'held-out', 'anatomy', 'pathology', 'drug', 'procedure', 'modality', 'everyday'}
NO_WORDS = {'nonsense', 'symbols'}
LANGUAGES = {kind for kind, _ in other_words.read()} - ENGLISH - NO_WORDS
GROUPS = {
  'names of other vocabulary terms': {'held-out'},
  'anatomy outside the vocabulary': {'anatomy'},
  'pathology': {'pathology'},
  'other languages': LANGUAGES,
  'drugs, procedures, modalities': {'drug', 'procedure', 'modality'},
  'everyday words': {'everyday'},
  'nonsense, code, numbers': NO_WORDS,
}


def score(trials, trained):
  """Familiarity, whether a prompt is a class's name, and its row, for one set of classes."""
  values, familiar, rows = trials.of(trained)
  return shipped_calibration().familiarity(values), familiar, rows


def auroc(scores, familiar):
  """Chance that a name of a class scores above a foreign prompt (Mann-Whitney)."""
  wins = stats.mannwhitneyu(scores[familiar], scores[~familiar]).statistic
  return wins / familiar.sum() / (~familiar).sum()


def rates(trials, sets):
  """One row of the table: means over sets of classes that have a name to ask for."""
  near, known = shipped_calibration().near, shipped_calibration().known
  columns = {name: [] for name in ('names', 'accepted', 'known', 'foreign', 'refused', 'AUROC')}
  groups = {name: [] for name in GROUPS}
  for trained in sets:
    scores, familiar, rows = score(trials, trained)
    if not familiar.any():
      continue
    columns['names'].append(familiar.sum())
    columns['accepted'].append((scores[familiar] >= near).mean())
    columns['known'].append((scores[familiar] >= known).mean())
    columns['foreign'].append((~familiar).sum())
    columns['refused'].append((scores[~familiar] < near).mean())
    columns['AUROC'].append(auroc(scores, familiar))
    for name, kinds in GROUPS.items():
      chosen = ~familiar & np.isin(trials.kinds[rows], list(kinds))
      groups[name].append((scores[chosen] < near).mean())
  return {name: np.array(values) for name, values in columns.items()}, groups


def table(trials, sets_of):
  """The two Markdown tables."""
  heads = ('classes', 'names asked', 'accepted', 'of these without a note', 'foreign prompts',
           'refused', 'AUROC')  # fmt: skip
  lines = [f'| {" | ".join(heads)} |', '|:--|--:|--:|--:|--:|--:|--:|']
  more = [f'| refused | {" | ".join(sets_of)} |', f'|:--|{"--:|" * len(sets_of)}']
  by_group = {}
  for name, sets in sets_of.items():
    c, by_group[name] = rates(trials, sets)
    unnoted = c['known'].mean() / c['accepted'].mean()
    lines.append(
      f'| {name} | {c["names"].sum()} | {c["accepted"].mean():.1%} | {unnoted:.1%} | '
      f'{c["foreign"].mean():.0f} | {c["refused"].mean():.1%} | {c["AUROC"].mean():.4f} |'
    )
  for group in GROUPS:
    shares = [f'{np.mean(by_group[name][group]):.1%}' for name in sets_of]
    more.append(f'| {group} | {" | ".join(shares)} |')
  return '\n'.join([*lines, '', *more])


def worst(trials, trained, count=10):
  """The foreign prompts that score highest and the names that score lowest, against `near`."""
  scores, familiar, rows = score(trials, trained)
  wrong = np.where(
    familiar, shipped_calibration().near - scores, scores - shipped_calibration().near
  )
  lines = []
  for at in np.argsort(-wrong)[:count]:
    what = 'a name of a class' if familiar[at] else trials.kinds[rows[at]]
    verdict = shipped_calibration().verdict(scores[at])
    lines.append(f'- `{trials.prompts[rows[at]]}` ({what}): {scores[at]:.2f}, {verdict}')
  return '\n'.join(lines)


def unplanned(compare, names):
  """Verdicts on names that nobody planned, of the classes of one set."""
  with UNPLANNED.open(newline='') as file:
    rows = [row for row in csv.DictReader(file) if row['class'] in names]
  trained = np.array([term.name in names for term in compare.terms])
  values = features(compare([row['text'] for row in rows]), trained)
  scores = shipped_calibration().familiarity(values)
  lines = []
  for kind in ('lay', 'typo'):
    taken = [s >= shipped_calibration().near for s, row in zip(scores, rows, strict=True)
             if row['kind'] == kind]  # fmt: skip
    refused = [row['text'] for s, row in zip(scores, rows, strict=True)
               if row['kind'] == kind and s < shipped_calibration().near]  # fmt: skip
    lines.append(f'{kind}: {sum(taken)} of {len(taken)} accepted; refused: {", ".join(refused)}')
  return '\n'.join(lines)


def draw(path, trials, sets_of):
  """ROC curves, with the two thresholds."""
  figure, axes = plt.subplots(figsize=(5.2, 4.6), layout='constrained')
  # The first two lie on each other.
  styles = ('#1f6fb4', 5.0), ('#d1702c', 1.8), ('#3b8f4f', 1.8)
  for (colour, width), (name, sets) in zip(styles, sets_of.items(), strict=True):
    grid, curves, points = np.linspace(0, 1, 2001), [], []
    for trained in sets:
      scores, familiar, _ = score(trials, trained)
      if familiar.any():
        cuts = np.quantile(scores[~familiar], 1 - grid, method='higher')
        curves.append([(scores[familiar] >= cut).mean() for cut in cuts])
        at = np.array([shipped_calibration().near, shipped_calibration().known])[:, None]
        points.append(
          [(scores[None, ~familiar] >= at).mean(1), (scores[None, familiar] >= at).mean(1)]
        )
    axes.plot(100 * grid, 100 * np.mean(curves, 0), color=colour, label=name, linewidth=width)
    x, y = np.mean(points, 0)
    axes.plot(100 * x[0], 100 * y[0], 'o', color=colour, markersize=7)
    axes.plot(100 * x[1], 100 * y[1], 's', color=colour, markersize=5, markerfacecolor='white')
  axes.plot([], [], 'o', color='#555555', label='near')
  axes.plot([], [], 's', color='#555555', markerfacecolor='white', label='known')
  axes.axhline(95, color='#bbbbbb', linewidth=0.8)
  axes.axvline(5, color='#bbbbbb', linewidth=0.8)
  axes.set(xlim=(-0.2, 8), ylim=(88, 100.5))
  axes.set_xlabel('foreign prompts accepted (%)')
  axes.set_ylabel('held-out names of the classes accepted (%)')
  axes.legend(loc='lower right', framealpha=1, edgecolor='white')
  axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=150)


def main():
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--output', type=pathlib.Path, required=True, help='folder of the picture')
  args = parser.parse_args()
  args.output.mkdir(parents=True, exist_ok=True)
  compare = Comparison(vocabulary.read(), checkpoint.load_text_encoder())
  trials = Trials(compare, testing=True)
  names = [term.name for term in compare.terms]
  of = lambda classes: [np.isin(names, classes)]
  known = list(checkpoint.load_config(shipped.MODEL).classes)
  sets_of = {
    f'the {len(known)} of the shipped model': of(known),
    'the 32 of the paper': of(TEMPLATE.names()[:32]),
    '100 random sets of 2 to 60': list(random_sets(100, len(names), seed=1)),
  }
  print(table(trials, sets_of))
  for name in list(sets_of)[:2]:
    print(f'\nWorst for {name}:\n\n{worst(trials, sets_of[name][0])}')
  print(f'\nUnplanned names of all 38 classes:\n\n{unplanned(compare, set(TEMPLATE.names()))}')
  draw(args.output / 'roc.png', trials, sets_of)
  return 0


if __name__ == '__main__':
  sys.exit(main())
