"""Words of terms: weights worked out by hand."""

import math

import numpy as np
import pytest

from mome_jax.text.lexicon import Lexicon, words

# Of three terms: 'left' is a word of two, the others of one each.
LEXICON = Lexicon([('left kidney', 'ren'), ('left lung',), ('spleen',)])
LEFT, RARE = math.log(3 / 2), math.log(3)


def test_words():
  assert words('Tumours of the Œsophagus_wall') == ['tumor', 'of', 'the', 'esophagu', 'wall']
  assert words('oesophagus') == words('esophagus')
  assert words('kidneys') == words('kidney')
  assert words('abscess') == ['abscess']
  assert words('?! -') == []


def test_similarity_is_the_cosine_to_the_best_phrase():
  length = math.hypot(LEFT, RARE)
  expected = [
    [1.0, LEFT**2 / length**2, 0.0],  # the whole phrase; the side alone in common
    [LEFT / length, LEFT / length, 0.0],
    [1.0, 0.0, 0.0],
    [0.0, 0.0, math.sqrt(0.5)],  # one word of two, of equal weight
    [0.0, 0.0, 0.0],
  ]
  prompts = ['Left kidneys', 'left', 'ren', 'spleen pizza', 'pizza']
  np.testing.assert_allclose(LEXICON.similarity(prompts), expected, atol=1e-6)


def test_strangeness_is_the_share_of_unknown_words():
  expected = [0.0, RARE / (RARE + LEFT), 0.5, 1.0, 1.0]
  prompts = ['left kidney', 'left pizza', 'spleen pizza', 'pizza', '...']
  np.testing.assert_allclose(LEXICON.strangeness(prompts), expected, atol=1e-6)


def test_precision_is_that_of_the_rarest_word():
  expected = [1.0, LEFT / RARE, 0.0]
  np.testing.assert_allclose(
    LEXICON.precision(['the left spleen', 'left', 'pizza']), expected, atol=1e-6
  )


@pytest.mark.parametrize('sentence', ['segment the {}', 'A computerized tomography of a {}'])
def test_a_sentence_around_a_name_weighs_little(sentence):
  text = sentence.format('spleen')
  assert LEXICON.similarity([text])[0, 2] > 0.97
  assert LEXICON.strangeness([text])[0] == 0
