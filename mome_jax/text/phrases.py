"""Phrases of anatomy: the many ways in which people write one structure's name.

Names and synonyms come from the tables of `input_pipeline.anatomy`; what a rule can make of them
(sides, spelling, a sentence around the name) is made here. No rule ever gives a held-out name.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline.anatomy.vocabulary import Term, fold
from mome_jax.text.prompts import SENTENCES

_SIDED = (
  '{side} {organ}',
  '{side} {organ}',
  '{organ} {side}',
  '{organ} ({side})',
  '{organ}, {side}',
  '{organ} on the {side}',
  '{organ} on the {side} side',
  '{organ} of the {side} side',
  '{side}-sided {organ}',
  '{letter} {organ}',
  '{organ} {letter}',
  '{short} {organ}',
)
_LETTERS = {'left': ('L', 'lt'), 'right': ('R', 'rt')}
# American and British spellings, the same in either direction.
_SPELLINGS = (
  ('tumor', 'tumour'), ('esoph', 'oesoph'), ('celiac', 'coeliac'), ('hemorrh', 'haemorrh'),
  ('hemat', 'haemat'), ('edema', 'oedema'), ('fiber', 'fibre'), ('cecum', 'caecum'),
  ('gray', 'grey'),
)  # fmt: skip
_DEFAULT = 'A computerized tomography of {noun}'


class Phrases:
  """Draws phrases of terms.

  Args:
    terms: of the vocabulary.
  """

  def __init__(self, terms: Sequence[Term]):
    self.terms = tuple(terms)
    self._held_out = {fold(name) for term in terms for name in term.held_out}
    self._names = [_allowed(_names(term), self._held_out, term.name) for term in terms]

  def names(self, row: int) -> tuple[str, ...]:
    """All bare names of a term that may be drawn, its canonical one first."""
    return self._names[row]

  def draw(self, row: int, rng: np.random.Generator) -> str:
    """A phrase of a term: its default prompt, or any of its names in any sentence."""
    names = self._names[row]
    name = names[0] if rng.random() < 0.4 else names[rng.integers(len(names))]
    if rng.random() < 0.1 and fold(respelled := _respell(name)) not in self._held_out:
      name = respelled
    sentence = _DEFAULT if rng.random() < 0.3 else SENTENCES[rng.integers(len(SENTENCES))]
    return sentence.format(name=name, noun=_noun(name, rng))

  def all(self) -> list[str]:
    """The sentences without a name, and all names bare: what a vocabulary is trained on."""
    sentences = [sentence.format(name='', noun='the') for sentence in SENTENCES]
    return [*sentences, *(name for names in self._names for name in names)]


def _names(term: Term) -> Iterable[str]:
  """The names in the table, and those that rules make of them."""
  yield from (term.name, *term.synonyms)
  if not term.side:
    return
  letter, short = _LETTERS[term.side]
  for name in (term.name, *term.synonyms):
    organ = name.removeprefix(f'{term.side} ')
    if organ != name:
      for pattern in _SIDED:
        yield pattern.format(side=term.side, organ=organ, letter=letter, short=short)


def _allowed(names: Iterable[str], held_out: set[str], canonical: str) -> tuple[str, ...]:
  """The names, each once, the canonical one first, without those held out."""
  return tuple(
    name for name in dict.fromkeys(names) if name == canonical or fold(name) not in held_out
  )


def _noun(name: str, rng: np.random.Generator) -> str:
  article = rng.choice(('the', 'a', ''), p=(0.5, 0.35, 0.15))
  if article == 'a' and name[0].lower() in 'aeiou':
    article = 'an'
  return f'{article} {name}'.strip()


def _respell(name: str) -> str:
  """The name in American spelling where it is British, and the other way round."""
  for american, british in _SPELLINGS:
    pattern, new = (british, american) if british in name.lower() else (american, british)
    name = re.sub(rf'\b{pattern}', new, name)
  return name
