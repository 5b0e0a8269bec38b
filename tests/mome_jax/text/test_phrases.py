"""Phrases of anatomy: what rules make of names, and that nothing held out comes out."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from input_pipeline.anatomy.vocabulary import Term, fold, terms
from mome_jax.text.phrases import Phrases
from mome_jax.text.prompts import SENTENCES

KIDNEY = Term(
  'left kidney', 'structure', 'left', 'kidney', (), 'abdomen', ('ren sinister',),
  ('kidney on the left side', 'L kidney', 'left-sided kidney'),
)  # fmt: skip
TUMOR = Term('liver tumor', 'finding', '', 'liver tumor', ('liver',), 'abdomen', ('liver mass',))


def test_a_side_is_said_in_many_ways_but_never_as_held_out():
  names = Phrases([KIDNEY]).names(0)
  assert names[0] == 'left kidney'
  assert set(names) == {
    'left kidney', 'ren sinister', 'kidney left', 'kidney (left)', 'kidney, left',
    'kidney on the left', 'kidney of the left side', 'kidney L', 'lt kidney',
  }  # fmt: skip


@hypothesis.given(st.integers(0, 10_000))
@hypothesis.settings(max_examples=30)
def test_a_draw_is_one_of_the_names_in_a_sentence(seed):
  text = Phrases([TUMOR]).draw(0, np.random.default_rng(seed))
  spelled = text.replace('tumour', 'tumor').replace('_', ' ').replace('-', ' ').lower()
  rests = {spelled.replace(name, '').strip() for name in ('liver tumor', 'liver mass')} - {spelled}
  [rest] = rests
  empty = [s.format(name='', noun=f'{a} ').strip() for s in SENTENCES for a in ('', 'a', 'the')]
  words = [' '.join(s.replace('-', ' ').lower().split()) for s in empty]
  assert ' '.join(rest.split()).replace(' ?', '?') in [w.replace(' ?', '?') for w in words]


def test_the_other_spelling_of_a_name_is_not_shown_where_it_is_held_out():
  term = Term('celiac trunk', 'structure', '', 'celiac trunk', synonyms=('celiac artery',),
              held_out=('coeliac artery',))  # fmt: skip
  phrases = Phrases([term])
  texts = [phrases.draw(0, np.random.default_rng(n)) for n in range(500)]
  assert any('coeliac trunk' in text for text in texts)
  assert not any('coeliac artery' in text for text in texts)


def test_the_same_generator_draws_the_same():
  phrases = Phrases([KIDNEY, TUMOR])
  draw = lambda: [phrases.draw(1, np.random.default_rng(n)) for n in range(50)]
  assert draw() == draw()
  assert len(set(draw())) > 10


def test_no_name_of_the_vocabulary_is_shown_that_is_held_out():
  vocabulary = terms()
  held_out = {fold(name) for term in vocabulary for name in term.held_out}
  canonical = {fold(term.name) for term in vocabulary}
  phrases = Phrases(vocabulary)
  shown = {fold(name) for row in range(len(vocabulary)) for name in phrases.names(row)}
  assert not (shown & held_out) - canonical
  assert len(held_out) > 800
