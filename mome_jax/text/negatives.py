"""Prompts of what a model does not segment: training asks for them and expects empty masks.

What a model was never taught to leave empty it fills with whatever class sounds alike.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline.anatomy import Structure
from input_pipeline.anatomy.vocabulary import Term, Vocabulary, fold
from mome_jax.text.prompts import sample_phrase

# Of the prompts drawn, those of no word at all: a name is refused because it is unknown, too.
_MADE_UP = 0.125
_CONSONANTS, _VOWELS = 'bcdfghjklmnprstvwz', 'aeiou'
# Words that do not tell one structure from another.
_COMMON = """a an and as entire for from in its of on or part side sided the to wall whole with
l left lt sinister sinistra sinistrum r right rt dexter dextra dextrum"""


def negative_terms(classes: Sequence[str], words: Vocabulary) -> tuple[Term, ...]:
  """What a model of these classes must leave empty.

  Left out is what may be one of the classes under another name or is known to share its voxels: the
  classes, their organs on either side, what contains them, their parts, and names made of the same
  words. A structure that overlaps a class without that being known, such as a fat space around it,
  stays: its mask is empty because the model does not know it.

  Args:
    classes: canonical names that the model is trained on.
    words: the vocabulary, which has them.

  Returns:
    Terms in the order of the vocabulary.
  """
  trained = [words.get(name) for name in classes]
  outer = frozenset().union(*(words.ancestors(term.name) for term in trained))
  organs = {term.organ for term in trained}
  around = organs | {words.get(name).organ for name in outer}
  names = {part for term in trained for part in _names(term.phrases)}
  canonical = {part for term in trained for part in _names([term.name])}
  # What a user adds may be a finding, too; the vocabulary knows no region of it.
  findings = [term for term in trained if term.kind == 'finding' or term.region == 'body']
  affected = frozenset().union(*(words.ancestors(term.name) for term in findings))
  regions = {term.region for term in findings}

  def is_other(term: Term) -> bool:
    inside = words.ancestors(term.name)
    if term.organ in around or organs & {words.get(name).organ for name in inside}:
      return False
    # A finding may be another one of the same place, or of any: a mass is a liver tumor.
    near = term.region in regions or 'body' in (term.region, *regions)
    if term.kind == 'finding' and findings and (near or inside & affected):
      return False
    parts = _names(term.phrases)
    within = any(part <= other for part in parts for other in names)
    return not within and not any(other <= part for part in parts for other in canonical)

  return tuple(term for term in words if is_other(term))


def sample_negatives(terms: Sequence[Term], count: int, *, seed: int, step: int) -> list[str]:
  """Draws prompts of different terms, in the sentences of classes; some of them are no words.

  Has no state, as `prompts.sample_prompts`; held-out synonyms never appear.

  Args:
    terms: from `negative_terms`.
    count: of prompts, up to the number of terms.
    seed: of the run, >= 0.
    step: training step, >= 0.

  Returns:
    `count` prompts.
  """
  rng = np.random.default_rng([seed, step, *b'negatives'])
  prompts = []
  for index in rng.choice(len(terms), count, replace=False):
    structure = _structure(terms[index])
    if rng.random() < _MADE_UP:
      name = _made_up(rng)
      structure = Structure(0, name, noun=f'a {name}')
    prompts.append(sample_phrase(rng, structure))
  return prompts


def _structure(term: Term) -> Structure:
  article = (
    'the' if term.side or term.name.endswith('s') else 'an' if term.name[0] in 'aeiou' else 'a'
  )
  return Structure(0, term.name, noun=f'{article} {term.name}', synonyms=tuple(term.synonyms))


def _made_up(rng: np.random.Generator) -> str:
  """One or two words of two to four syllables."""
  word = lambda: ''.join(
    rng.choice(list(_CONSONANTS)) + rng.choice(list(_VOWELS)) for _ in range(rng.integers(2, 5))
  )
  return ' '.join(word() for _ in range(rng.integers(1, 3)))


def _names(phrases: Iterable[str]) -> set[frozenset[str]]:
  """Of each phrase the words that tell a structure from others, without case and plural."""
  split = (fold(phrase).split() for phrase in phrases)
  names = {frozenset(w.removesuffix('s') if len(w) > 3 else w for w in words) for words in split}
  return {words.difference(_COMMON.split()) for words in names} - {frozenset()}
