"""Measures of an encoder, on vectors made by hand."""

import numpy as np
import pytest

from input_pipeline.anatomy.vocabulary import Term
from mome_jax.text import retrieval


def sided(organ, *held_out):
  phrases = lambda side: tuple(f'{side} {name}' for name in held_out)
  return [
    Term(f'{side} {organ}', 'structure', side, organ, held_out=phrases(side))
    for side in ('right', 'left')
  ]


TERMS = [*sided('kidney', 'ren'), *sided('lung'), Term('liver', 'structure', '', 'liver')]
SIDE = np.array([0, 0, 0, 1.0])
VECTORS = {
  'right kidney': np.array([1.0, 0, 0, 0]) - SIDE,
  'left kidney': np.array([1.0, 0, 0, 0]) + SIDE,
  'right lung': np.array([0, 1.0, 0, 0]) - SIDE,
  'left lung': np.array([0, 1.0, 0, 0]) + SIDE,
  'liver': np.array([0, 0, 1.0, 0]),
  'right ren': np.array([0.9, 0, 0, -1]),
  'left ren': np.array([0.1, 0.9, 0, 1]),  # a mistake: nearest to the lung
}


def embed(texts):
  return np.stack(
    [VECTORS[text.removeprefix('A computerized tomography of the ')] for text in texts]
  )


def test_names_never_shown():
  assert retrieval.held_out(embed, TERMS) == [
    ('right ren', 'right kidney', 'right kidney'),
    ('left ren', 'left kidney', 'left lung'),
  ]
  assert retrieval.held_out(embed, TERMS[2:]) == []


def test_sides_by_analogy(monkeypatch):
  assert retrieval.sides(embed, TERMS, ['left lung']) == {'retrieved': 1.0, 'step': 1.0}
  monkeypatch.setitem(VECTORS, 'left lung', VECTORS['right lung'])
  values = retrieval.sides(embed, TERMS, ['left lung'])
  assert values == {'retrieved': 0.0, 'step': 0.0}


def test_spread_of_phrases():
  phrases = np.array([[2.0, 0], [2, 2], [4, 2]])  # 0, 4 and 8 away, in squares; the length is 2
  assert retrieval.spread(phrases[0], phrases) == pytest.approx((0 + 4 + 8) / 3 / 4)


def test_geometry_of_one_hot_vectors_and_of_near_parallel_ones():
  assert retrieval.geometry(np.eye(3)) == pytest.approx(
    {'norm': 1, 'mean_cosine': 0, 'greatest_cosine': 0, 'condition': 1}
  )
  values = retrieval.geometry(np.array([[3.0, 4.0], [4.0, 3.0]]))
  # Singular values of [[3, 4], [4, 3]]: 7 and 1.
  expected = {'norm': 5, 'mean_cosine': 0.96, 'greatest_cosine': 0.96, 'condition': 7}
  assert values == pytest.approx(expected)
