"""Calibrates the familiarity of prompts: its weights and thresholds.

  python -m mome_jax.text.calibrate [--output familiarity.json]

Takes a quarter of a minute. To be run again whenever the shipped text encoder, the vocabulary or
`assets/other_words.csv` has changed; a test says so.

Random sets of terms play the classes of a model. Their held-out names must be familiar; held-out
names of all other terms and other words must not, but for what contains a class or lies in it, of
which nothing is asked. The calibrating half of both is used, see `other_words`.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import optimize

from input_pipeline import errors
from input_pipeline.anatomy import TEMPLATE, vocabulary
from input_pipeline.cli import Parser, dashed
from mome_jax import shipped
from mome_jax.text import familiarity, other_words
from mome_jax.text.familiarity import FEATURES, Calibration, Comparison

_SETS = 100
_SIZES = 2, 60
_RIDGE = 0.01
_STRAY = 0.003  # share of foreign prompts that may pass for known


class Trials:
  """Prompts whose familiarity is known for any set of classes.

  Args:
    compare: with all terms of a vocabulary.
    testing: which half; see `other_words.is_for_testing`. None is both.

  Attributes:
    prompts: K texts.
    kinds: (K,) 'held-out', or the kind of other words.
  """

  def __init__(self, compare: Comparison, testing: bool | None):
    terms = compare.terms
    owned = [(name, row) for row, term in enumerate(terms) for name in term.held_out]
    texts = [(name, 'held-out', row) for name, row in owned]
    texts += [(text, kind, -1) for kind, text in other_words.read()]
    texts = [t for t in texts if testing is None or other_words.is_for_testing(t[0]) == testing]
    self.prompts = [text for text, _, _ in texts]
    self.kinds = np.array([kind for _, kind, _ in texts])
    self._owner = np.array([row for _, _, row in texts])
    self._likeness = compare(self.prompts)
    rows = {term.name: row for row, term in enumerate(terms)}
    self._related = np.eye(len(terms), dtype=bool)
    for term in terms:
      outer = [rows[name] for name in terms.ancestors(term.name)]
      self._related[rows[term.name], outer] = self._related[outer, rows[term.name]] = True

  def of(self, trained: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trials of a set of classes.

    Args:
      trained: (N,) bool, which terms are classes.

    Returns:
      features: (J, F) float64.
      familiar: (J,) bool, whether a prompt is a name of a class.
      rows: (J,) int, of `prompts`.
    """
    owned = self._owner >= 0
    related = owned & self._related[trained].any(0)[self._owner]
    familiar = owned & trained[self._owner]
    rows = np.flatnonzero(familiar | ~related)
    return familiarity.features(self._likeness, trained)[rows], familiar[rows], rows


def random_sets(count: int, terms: int, seed: int) -> Iterator[np.ndarray]:
  """Sets of terms, (N,) bool each, of 2 to 60 terms, small ones as often as large ones."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    size = int(np.exp(rng.uniform(*np.log(_SIZES))))
    # Half of them of the built-in classes alone: models are trained on those.
    pool = len(TEMPLATE) if rng.random() < 0.5 else terms
    trained = np.zeros(terms, bool)
    trained[rng.choice(pool, min(size, pool), replace=False)] = True
    yield trained


def calibrate(compare: Comparison, *, seed: int = 0) -> Calibration:
  """Weights and thresholds from the calibrating half."""
  trials = Trials(compare, testing=False)
  parts = [trials.of(trained) for trained in random_sets(_SETS, len(compare.terms), seed)]
  parts = [part for part in parts if part[1].any()]
  values = np.concatenate([part[0] for part in parts])
  familiar = np.concatenate([part[1] for part in parts])
  # Each set counts the same, and in it what is familiar as much as what is not.
  shares = [np.where(part[1], 1 / part[1].sum(), 1 / (~part[1]).sum()) for part in parts]
  share = np.concatenate(shares) / (2 * len(parts))
  draft = Calibration(_fit(values, familiar, share), known=1.0, near=0.0)
  score = draft.familiarity(values)
  near, known = _thresholds(score[familiar], score[~familiar], share[familiar], share[~familiar])
  return Calibration(draft.weights, known, near)


def _fit(values: np.ndarray, familiar: np.ndarray, share: np.ndarray) -> tuple[float, ...]:
  """Ridge logistic regression on standardised features: (F + 1,) weights of the raw ones."""
  mean, spread = values.mean(0), values.std(0)
  inputs = np.column_stack([(values - mean) / spread, np.ones(len(values))])
  sign = np.where(familiar, -1.0, 1.0)

  def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
    logits = sign * (inputs @ weights)
    slope = sign * share / (1 + np.exp(-logits))
    penalty = _RIDGE * np.append(weights[:-1], 0.0)
    total = float(share @ np.logaddexp(0, logits) + penalty @ weights / 2)
    return total, slope @ inputs + penalty

  start = np.zeros(len(FEATURES) + 1)
  weights = optimize.minimize(loss, start, jac=True, method='L-BFGS-B').x
  raw = weights[:-1] / spread
  return (*raw.tolist(), float(weights[-1] - raw @ mean))


def _thresholds(
  familiar: np.ndarray, foreign: np.ndarray, *shares: np.ndarray
) -> tuple[float, float]:
  """Where as much of either is on the wrong side, and above which almost nothing is foreign."""
  inside, outside = _shares_below(familiar, shares[0]), _shares_below(foreign, shares[1])
  grid = np.linspace(0.01, 0.99, 981)
  near = grid[np.maximum(inside(grid), 1 - outside(grid)).argmin()]
  known = grid[np.argmax(outside(grid) >= 1 - _STRAY)]
  return round(float(near), 3), round(float(max(known, near)), 3)


def _shares_below(scores: np.ndarray, shares: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Threshold -> share of the scores below it."""
  order = np.argsort(scores)
  sums = np.append(0.0, np.cumsum(shares[order])) / shares.sum()
  return lambda at: sums[np.searchsorted(scores[order], at)]


def made_of(compare: Comparison, embed: Callable[[Sequence[str]], np.ndarray]) -> dict[str, str]:
  """SHA-256 of all that a calibration depends on."""
  probe = np.round(embed(['right kidney', 'pineapple pizza']), 2) + 0.0  # equal on any machine
  texts = sorted(f'{term}' for term in compare.terms)
  parts = {
    'text_encoder': np.ascontiguousarray(probe).tobytes(),
    'vocabulary': '\n'.join(texts).encode(),
    'other_words': '\n'.join(f'{kind},{text}' for kind, text in other_words.read()).encode(),
  }
  return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.text.calibrate', description=__doc__)
  parser.add_argument('--output', type=pathlib.Path, default=shipped.FAMILIARITY)
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  output = make_parser().parse_args(dashed(argv)).output
  from mome_jax import checkpoint  # slow to import

  embed = checkpoint.load_text_encoder()
  compare = Comparison(vocabulary.read(), embed)
  calibration = calibrate(compare)
  fields = {**calibration.to_json(), 'made_of': made_of(compare, embed)}
  with errors.writing(output):
    output.write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')
  print(f'{output}: near from {calibration.near}, known from {calibration.known}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
