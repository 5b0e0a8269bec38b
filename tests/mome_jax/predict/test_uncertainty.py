"""The share of a mask that its own probabilities are not sure of."""

import numpy as np

from mome_jax.inference import slabs
from mome_jax.predict.uncertainty import Uncertainty


def feed(logits, columns, spacing=(1.0, 1.0, 1.0), pieces=3):
  uncertainty = Uncertainty(columns)
  parts = (part.copy() for part in np.array_split(np.moveaxis(logits, -1, 0), pieces, 1))
  for slab in slabs.resample_slabs(parts, logits.shape[:3], (1,) * 3, logits.shape[:3], spacing):
    uncertainty.add(slab)
  return uncertainty.shares()


def test_shares_by_hand():
  probabilities = np.array([0.3, 0.49, 0.51, 0.6, 0.74, 0.76, 0.9, 0.99])
  logits = np.zeros((8, 2, 2, 3), np.float32)
  logits[..., 0] = np.log(probabilities / (1 - probabilities))[:, None, None]
  logits[..., 1] = -1
  logits[..., 2] = 5
  # Over one half are six of the eight probabilities, below 0.75 three of them.
  assert feed(logits, [0, 1, 2]) == [0.5, None, 0.0]
  assert feed(logits, [2, 0]) == [0.0, 0.5]


def test_it_does_not_depend_on_the_slabs():
  logits = np.random.default_rng(0).normal(0, 2, (12, 9, 7, 2)).astype(np.float32)
  expected = [
    round(float(((x > 0) & (x < np.log(3))).sum() / (x > 0).sum()), 4)
    for x in np.moveaxis(logits, -1, 0)
  ]
  for pieces in (1, 3, 12):
    assert feed(logits, [0, 1], pieces=pieces) == expected
