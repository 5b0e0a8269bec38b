"""The words of some terms: which a text shares with each of them, and which nobody knows."""

import collections
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse

from mome_jax.text.prompts import SENTENCES

# American and British spellings of what occurs in names.
_SPELLINGS = (
  ('œ', 'oe'),
  ('æ', 'ae'),
  ('oesoph', 'esoph'),
  ('oedem', 'edem'),
  ('tumour', 'tumor'),
  ('coelia', 'celia'),
  ('haem', 'hem'),
  ('caec', 'cec'),
  ('fibre', 'fiber'),
  ('centre', 'center'),
  ('disk', 'disc'),
)
_OF_SENTENCES = 0.1  # weight of words that stand around any name


class Lexicon:
  """The words of N terms; rare ones weigh more than those of many terms.

  Args:
    phrases: of every term, its names.
  """

  def __init__(self, phrases: Sequence[Iterable[str]]):
    rows = [words(phrase) for names in phrases for phrase in names]
    counts = [len(list(names)) for names in phrases]
    self._starts = np.cumsum([0, *counts[:-1]])
    terms = collections.Counter(
      word
      for start, count in zip(self._starts, counts, strict=True)
      for word in {word for row in rows[start : start + count] for word in row}
    )
    self._strange = math.log(len(phrases))  # weight of a word of none, and of one term's only
    self._weights = {word: math.log(len(phrases) / count) for word, count in terms.items()}
    around = ' '.join(sentence.format(name='', noun='the a an') for sentence in SENTENCES)
    self._weights |= dict.fromkeys(words(around), _OF_SENTENCES)
    self._columns = {word: column for column, word in enumerate(self._weights)}
    self._phrases = self._matrix(rows)

  def similarity(self, texts: Sequence[str]) -> np.ndarray:
    """Of K texts and N terms, (K, N) float32: cosine of weighted words to a term's best phrase."""
    cosine = (self._matrix([words(text) for text in texts]) @ self._phrases.T).toarray()
    return np.maximum.reduceat(cosine, self._starts, axis=1).astype(np.float32)

  def strangeness(self, texts: Sequence[str]) -> np.ndarray:
    """Of K texts, (K,) float32: the share of words that no term has, 1 where there is no word."""
    shares = []
    for row in map(words, texts):
      strange = self._strange * sum(word not in self._weights for word in row)
      known = sum(self._weights.get(word, 0.0) for word in row)
      shares.append(strange / (strange + known) if strange + known else 1.0)
    return np.array(shares, np.float32)

  def precision(self, texts: Sequence[str]) -> np.ndarray:
    """Of K texts, (K,) float32 in [0, 1]: how few terms have the rarest of the known words.

    That of 'left side' is small: many terms have both words.
    """
    rarest = [max((self._weights.get(w, 0.0) for w in words(text)), default=0.0) for text in texts]
    return (np.array(rarest) / self._strange).astype(np.float32)

  def _matrix(self, rows: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """Weighted words of texts, (K, words), each row of length 1; strange words lengthen it only."""
    data, indices, ends = [], [], [0]
    for row in rows:
      weights = {word: self._weights.get(word, self._strange) for word in row}
      length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
      for word, weight in weights.items():
        if word in self._columns:
          data.append(weight / length)
          indices.append(self._columns[word])
      ends.append(len(data))
    return sparse.csr_matrix((data, indices, ends), (len(rows), len(self._columns)))


def words(text: str) -> list[str]:
  """The words of a text: lower case, American spelling, without plurals."""
  text = text.casefold()
  for british, american in _SPELLINGS:
    text = text.replace(british, american)
  return [_singular(word) for word in re.findall(r'[^\W_]+', text)]


def _singular(word: str) -> str:
  return word[:-1] if len(word) > 3 and word.endswith('s') and not word.endswith('ss') else word
