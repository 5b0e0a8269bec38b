"""Which anatomy is none of a model's classes, and the prompts that are drawn of it."""

import pytest

from input_pipeline.anatomy import TEMPLATE, vocabulary
from input_pipeline.anatomy.vocabulary import Term, Vocabulary, fold
from mome_jax.configs import openkbp_cpu
from mome_jax.text import negatives

HAND = Vocabulary(
  [
    Term('head', 'structure', organ='head', region='head'),
    Term('gland', 'structure', organ='gland', parents=('head',), region='head'),
    Term('left parotid', 'structure', 'left', 'parotid', ('gland',), 'head', ('parotid gland L',)),
    Term('right parotid', 'structure', 'right', 'parotid', ('gland',), 'head'),
    Term('right deep lobe', 'structure', 'right', 'deep lobe', ('right parotid',), 'head'),
    Term('parotid space', 'structure', organ='parotid space', region='head'),
    Term('spittle organ', 'structure', organ='spittle organ', synonyms=('the gland, parotid',)),
    Term('left chin', 'structure', 'left', 'chin', ('head',), 'head'),
    Term('mumps', 'finding', organ='mumps', parents=('left parotid',), region='head'),
    Term('mass', 'finding', organ='mass'),
    Term('liver', 'structure', organ='liver', region='abdomen'),
    Term('liver tumor', 'finding', organ='liver tumor', parents=('liver',), region='abdomen'),
    Term('liver spot', 'finding', organ='liver spot', parents=('liver',), region='abdomen'),
    Term('head bruise', 'finding', organ='head bruise', region='head'),
    Term('novelty', 'structure', organ='novelty'),
  ]
)


@pytest.mark.parametrize(
  ('classes', 'others'),
  [
    # Neither side, neither what contains nor what lies in it, nor a name of its words.
    (
      ['left parotid'],
      'left chin, mass, liver, liver tumor, liver spot, head bruise, novelty',
    ),
    # Of a finding neither its organ nor another finding of its place or of any.
    (
      ['liver tumor'],
      'head, gland, left parotid, right parotid, right deep lobe, parotid space, spittle organ, '
      'left chin, mumps, head bruise, novelty',
    ),
    # A class of which nothing is known may be any finding.
    (
      ['novelty'],
      'head, gland, left parotid, right parotid, right deep lobe, parotid space, spittle organ, '
      'left chin, liver',
    ),
  ],
)
def test_what_is_other_anatomy(classes, others):
  terms = [term.name for term in negatives.negative_terms(classes, HAND)]
  assert terms == others.split(', ')


def test_other_anatomy_of_a_head_and_neck_model():
  words = vocabulary.read()
  others = {term.name for term in negatives.negative_terms(openkbp_cpu.get_config().classes, words)}
  assert others >= {
    'liver', 'left kidney', 'left submandibular gland', 'tongue', 'maxilla', 'trachea', 'heart',
    'thyroid gland', 'gross tumor volume', 'tumor',
  }  # fmt: skip
  assert not others & {
    'brain', 'skull', 'pons', 'midbrain', 'spinal canal', 'epiglottis', 'thyroid cartilage',
    'parotid tumor', 'laryngeal tumor', 'mediastinum', 'skeleton',
  }  # fmt: skip


def test_no_name_of_a_class_or_of_its_other_side_is_a_negative():
  words = vocabulary.read()
  for structure in TEMPLATE:
    other_side = {'left': 'right', 'right': 'left'}.get(structure.side, '')
    pair = {structure.name, structure.name.replace(structure.side, other_side)}
    taken = {fold(phrase) for name in pair for phrase in words.get(name).phrases}
    taken |= {fold(name) for name in words.ancestors(structure.name)}
    others = negatives.negative_terms([structure.name], words)
    assert not taken & {fold(phrase) for term in others for phrase in term.phrases}
    assert not any(pair & words.ancestors(term.name) for term in others)
    assert len(others) > 0.6 * len(words)


def test_prompts_are_drawn_without_a_state():
  words = vocabulary.read()
  terms = negatives.negative_terms(['liver', 'left parotid'], words)
  draw = lambda step, seed=3: negatives.sample_negatives(terms, 4, seed=seed, step=step)
  assert draw(7) == draw(7)
  assert draw(7) != draw(8) and draw(7) != draw(7, seed=4)
  drawn = [fold(prompt) for step in range(500) for prompt in draw(step)]
  held_out = {fold(phrase) for term in words for phrase in term.held_out}
  bare = {fold(phrase) for term in words for phrase in (term.name, *term.synonyms)}
  assert not (held_out - bare) & set(drawn)
  phrases = {fold(phrase) for term in terms for phrase in (term.name, *term.synonyms)}
  names = lambda prompt: any(f' {phrase} ' in f' {prompt} ' for phrase in phrases)
  made_up = sum(not names(prompt) for prompt in drawn) / len(drawn)
  assert 0.08 < made_up < 0.17
  assert len(set(drawn)) > 1000
