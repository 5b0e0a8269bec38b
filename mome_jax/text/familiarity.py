"""Whether a prompt means something that a model was trained on.

A text encoder gives every text a vector, nonsense too, and a model makes a mask of any vector. So
each prompt is compared with all that could be meant: the classes that the model was trained on on
one side, the hundreds of other terms of the vocabulary on the other. What counts is

- the text encoder: how near the prompt comes to a trained class, and how much nearer than to
  anything else, in several sentences, and how far these agree;
- the words: which of them a trained class and another term have among their names, how many no
  term has ('pizza'), and how telling they are ('left' is not).

A logistic function of these gives the familiarity, and two thresholds the verdict. Both are
calibrated (`python -m mome_jax.text.calibrate`) on random sets of classes, so that they hold for
any model, whatever its own text encoder.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import TEMPLATE, Template, resolve, vocabulary
from input_pipeline.anatomy.vocabulary import Vocabulary
from mome_jax import shipped
from mome_jax.text.lexicon import Lexicon
from mome_jax.text.vectors import unit

VERDICTS = ('known', 'near', 'unfamiliar')
FEATURES = (
  'nearness',  # greatest cosine similarity to a trained class
  'margin',  # and how much greater than to any other term
  'odds',  # log odds of a trained class among all terms
  'disagreement',  # standard deviation of the odds over the sentences
  'words',  # weighted words in common with the best phrase of a trained class
  'words_margin',  # and how many more than with any other term
  'strangeness',  # share of words that no term has
  'precision',  # how few terms have the rarest word
)

_SENTENCES = ('{}', 'A computerized tomography of the {}', 'segment the {}', '{} on CT')
_OF_TERMS = 'A computerized tomography of the {}'
_TEMPERATURE = 0.1  # that the encoder was pre-trained with
_MOST_ODDS = 12.0
_LIKE = (
  0.6  # cosine of texts that share no word and are alike all the same; that of nonsense is less
)

Embed = Callable[[Sequence[str]], np.ndarray]  # K texts -> (K, d) float32


@dataclasses.dataclass(frozen=True)
class Likeness:
  """How K prompts are like N terms.

  Attributes:
    cosine: (K, N) float32, of embeddings, mean over S sentences around the prompt.
    closeness: (S, K, N) float32, exponential of the cosine in each over the temperature.
    words: (K, N) float32, of weighted words.
    strangeness: (K,) float32.
    precision: (K,) float32.
  """

  cosine: np.ndarray
  closeness: np.ndarray
  words: np.ndarray
  strangeness: np.ndarray
  precision: np.ndarray


class Comparison:
  """Compares prompts with all terms of a vocabulary.

  Args:
    terms: N of them.
    embed: the text encoder.
  """

  def __init__(self, terms: Vocabulary, embed: Embed):
    self.terms, self._embed = terms, embed
    self._lexicon = Lexicon([(term.name, *term.synonyms) for term in terms])
    self._vectors = unit(embed([_OF_TERMS.format(term.name) for term in terms]))

  def __call__(self, prompts: Sequence[str]) -> Likeness:
    """The likeness of K prompts to the terms."""
    texts = [sentence.format(prompt) for sentence in _SENTENCES for prompt in prompts]
    cosine = unit(self._embed(texts)) @ self._vectors.T
    cosine = cosine.reshape(len(_SENTENCES), len(prompts), len(self.terms))
    return Likeness(
      cosine.mean(0),
      np.exp(cosine / _TEMPERATURE),
      self._lexicon.similarity(prompts),
      self._lexicon.strangeness(prompts),
      self._lexicon.precision(prompts),
    )


def features(likeness: Likeness, trained: np.ndarray) -> np.ndarray:
  """What decides the familiarity of K prompts: (K, F) float64, F as in FEATURES.

  Args:
    likeness: to N terms.
    trained: (N,) bool, which terms are classes of the model; some, and not all.
  """
  cosine = likeness.cosine
  nearness = cosine[:, trained].max(1)
  sides = likeness.closeness @ np.stack([trained, ~trained], 1).astype(np.float32)  # (S, K, 2)
  odds = np.log(sides[..., 0]) - np.log(sides[..., 1])
  odds = np.clip(odds, -_MOST_ODDS, _MOST_ODDS)  # (S, K)
  words = likeness.words[:, trained].max(1)
  columns = (
    nearness,
    nearness - cosine[:, ~trained].max(1),
    odds.mean(0),
    odds.std(0),
    words,
    words - likeness.words[:, ~trained].max(1),
    likeness.strangeness,
    likeness.precision,
  )
  return np.stack(columns, 1).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What makes a familiarity and a verdict of features.

  Attributes:
    weights: (F + 1,) of the features, and a constant.
    known: familiarity from which on a prompt is known.
    near: from which on it is near; below it is unfamiliar.
    made_of: what it was made with: SHA-256 of files and parameters.
  """

  weights: tuple[float, ...]
  known: float
  near: float
  made_of: dict[str, str] = dataclasses.field(default_factory=dict)

  def familiarity(self, features: np.ndarray) -> np.ndarray:
    """(K, F) features -> (K,) float32 in [0, 1]."""
    logits = features @ np.array(self.weights[:-1]) + self.weights[-1]
    return (1 / (1 + np.exp(-np.clip(logits, -50, 50)))).astype(np.float32)

  def verdict(self, familiarity: float) -> str:
    """One of VERDICTS."""
    if familiarity >= self.known:
      return 'known'
    return 'near' if familiarity >= self.near else 'unfamiliar'

  def to_json(self) -> dict[str, Any]:
    """Its fields, weights by the name of their feature."""
    weights = dict(zip((*FEATURES, 'constant'), self.weights, strict=True))
    return {**dataclasses.asdict(self), 'weights': weights}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'Calibration':
    """The inverse of `to_json`."""
    weights = tuple(fields['weights'][name] for name in (*FEATURES, 'constant'))
    return cls(**{**fields, 'weights': weights})


@functools.cache
def shipped_calibration() -> Calibration:
  """The calibration that comes with the package."""
  return Calibration.from_json(json.loads(shipped.FAMILIARITY.read_text(encoding='utf-8')))


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What is to be thought of a prompt.

  Attributes:
    familiarity: in [0, 1].
    verdict: one of VERDICTS.
    nearest: the trained class that it is nearest to, not of the side that it does not name; ''
      where it is like none of them.
    meaning: the term of the vocabulary whose name it is, or ''.
  """

  familiarity: float
  verdict: str
  nearest: str
  meaning: str = ''


class Familiarity:
  """Judges prompts for a model.

  Args:
    classes: names of the classes that the model was trained on.
    template: of the classes.
    embed: the shipped text encoder, whatever the model's own is.
    calibration: by default that of the package.
  """

  def __init__(
    self,
    classes: Collection[str],
    template: Template = TEMPLATE,
    *,
    embed: Embed,
    calibration: Calibration | None = None,
  ):
    self._compare = Comparison(vocabulary.read(template), embed)
    self._calibration = calibration or shipped_calibration()
    self._terms = self._compare.terms
    self.trained = np.array([term.name in classes for term in self._terms])
    self._classes = frozenset(classes)

  def score(self, prompts: Sequence[str]) -> np.ndarray:
    """Familiarity of K prompts, (K,) float32 in [0, 1]; nothing is looked up."""
    return self._calibration.familiarity(features(self._compare(prompts), self.trained))

  def judge(self, prompts: Sequence[str], *, look_up: bool = True) -> list[Judgement]:
    """Verdicts on K prompts.

    Args:
      prompts: any texts.
      look_up: whether the names of the vocabulary decide where a prompt is one: 1 for those of
        trained classes, 0 for those of anything else.
    """
    if not prompts:
      return []
    likeness = self._compare(prompts)
    scores = self._calibration.familiarity(features(likeness, self.trained))
    # Of the classes the nearest by both, as each alone has odd neighbours.
    near = np.where(self._candidates(prompts), likeness.cosine + likeness.words, -np.inf)
    nearest = near.argmax(1)
    judgements = []
    for k, (prompt, score, n) in enumerate(zip(prompts, scores.tolist(), nearest, strict=True)):
      alike = likeness.words[k, n] > 0 or likeness.cosine[k, n] >= _LIKE
      name = self._terms.terms[n].name if alike else ''
      term = self._terms.find(prompt) if look_up else None
      if term is not None:
        score = float(term.name in self._classes)
        name = term.name if score else name
      meaning = term.name if term else ''
      judgements.append(Judgement(score, self._calibration.verdict(score), name, meaning))
    return judgements

  def _candidates(self, prompts: Sequence[str]) -> np.ndarray:
    """(K, N) bool: the trained classes but those of the side that a prompt does not name."""
    fitting = [
      [len(named) != 1 or term.side in ('', *named) for term in self._terms]
      for named in (resolve.key(prompt)[0] for prompt in prompts)
    ]
    candidates = self.trained & np.array(fitting)
    return np.where(candidates.any(1, keepdims=True), candidates, self.trained)
