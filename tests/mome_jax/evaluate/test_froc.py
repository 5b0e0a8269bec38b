"""Detection over thresholds, on three scans worked out by hand."""

import numpy as np
import pytest

from mome_jax.evaluate import froc, lesions
from mome_jax.pictures import froc_curve
from tests.mome_jax.evaluate.test_lesions import NAME, SPACING, A, B, C, cubes


class Slab:
  """The planes [0, 24) of a scan whose probability of the second class is given."""

  planes = slice(0, 24)

  def __init__(self, chance):
    self._chance = chance

  def logits(self, k):
    assert k == 1
    return np.log(self._chance / (1 - self._chance)).astype(np.float32)


def scan(**chances):
  """Cubes at A, B and C of these probabilities, in 0.01."""
  chance = np.full((24, 12, 12), 0.01)
  for name, value in chances.items():
    chance[cubes({'a': A, 'b': B, 'c': C}[name])] = value
  return chance


# Probability and truth: a scan with lesions at A and B, and two healthy ones.
SCANS = [
  (scan(a=0.97, b=0.45, c=0.25), cubes(A, B)),
  (scan(b=0.55, c=0.15), cubes()),
  (scan(), cubes()),
]


def count():
  rows = []
  for chance, truth in SCANS:
    levels = froc.Levels(('liver', NAME, 'spleen'), chance.shape)
    assert levels.names == (NAME,)
    levels.add(Slab(chance))
    rows += froc.count(levels.of(NAME), truth, SPACING, NAME)
  return rows


def test_the_curve():
  points = froc.summarize(count())
  got = {
    p['threshold']: (p['lesion_sensitivity'], p['false_positives_per_healthy'], p['specificity'])
    for p in points
  }
  #  threshold: lesions found, false positives in the two healthy scans, silent ones of the two
  expected = {0.05: (1, 1.0, 0.5), 0.1: (1, 1.0, 0.5), 0.2: (1, 0.5, 0.5), 0.3: (1, 0.5, 0.5),
              0.4: (1, 0.5, 0.5), 0.5: (0.5, 0.5, 0.5), 0.6: (0.5, 0, 1), 0.7: (0.5, 0, 1),
              0.8: (0.5, 0, 1), 0.9: (0.5, 0, 1), 0.95: (0.5, 0, 1)}  # fmt: skip
  assert got == expected
  assert {(p['class'], p['n_diseased'], p['n_healthy']) for p in points} == {(NAME, 1, 2)}


def test_the_curve_has_no_intervals_to_compute(monkeypatch):
  """Four for each class and threshold, none of which is written: minutes for thousands of scans."""
  monkeypatch.setattr(lesions, 'bootstrap_ratio', lambda *_: pytest.fail('computed'))
  assert len(froc.summarize(count())) == len(froc.THRESHOLDS)


def test_the_middle_of_the_curve_is_what_masks_have():
  rows = [row for row in count() if row['threshold'] == 0.5]
  for row, (chance, truth) in zip(rows, SCANS, strict=True):
    expected = lesions.count(chance > 0.5, truth, SPACING, NAME)
    assert {key: row[key] for key in expected} == expected


def test_a_lesion_below_the_least_volume_is_found_at_every_threshold():
  small = np.zeros((8, 8, 8), bool)
  small[3:5, 3:5, 3:5] = True  # 0.064 of 0.07 ml
  levels = np.where(small, len(froc.THRESHOLDS), 0)
  assert {row['found'] for row in froc.count(levels, small, SPACING, NAME)} == {1}
  assert {row['predicted'] for row in froc.count(levels, np.zeros_like(small), SPACING, NAME)} == {
    0
  }


def test_the_picture(tmp_path):
  assert froc_curve.froc_curve(tmp_path / 'a.png', froc.summarize(count()))
  assert (tmp_path / 'a.png').stat().st_size > 5000
  diseased = [row for row in count() if row['lesions']]
  assert not froc_curve.froc_curve(tmp_path / 'b.png', froc.summarize(diseased))
  assert all(p['specificity'] is None for p in froc.summarize(diseased))
