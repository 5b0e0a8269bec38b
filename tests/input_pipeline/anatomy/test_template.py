import dataclasses
import json
import re

import numpy as np
import pytest

from input_pipeline import anatomy
from input_pipeline.anatomy import TEMPLATE, ClassError, Structure, Template
from input_pipeline.anatomy.resolve import find_class

# As the CLIP-Driven Universal Model numbers them: right before left, except the femoral heads.
INDICES = {
  'spleen': 1, 'right kidney': 2, 'left kidney': 3, 'gallbladder': 4, 'esophagus': 5, 'liver': 6,
  'stomach': 7, 'aorta': 8, 'postcava': 9, 'portal and splenic vein': 10, 'pancreas': 11,
  'right adrenal gland': 12, 'left adrenal gland': 13, 'duodenum': 14, 'hepatic vessel': 15,
  'right lung': 16, 'left lung': 17, 'colon': 18, 'intestine': 19, 'rectum': 20, 'bladder': 21,
  'prostate': 22, 'left femoral head': 23, 'right femoral head': 24, 'celiac trunk': 25,
  'kidney tumor': 26, 'liver tumor': 27, 'pancreas tumor': 28, 'hepatic vessel tumor': 29,
  'lung tumor': 30, 'colon tumor': 31, 'kidney cyst': 32, 'brainstem': 33, 'spinal cord': 34,
  'right parotid': 35, 'left parotid': 36, 'larynx': 37, 'mandible': 38,
}  # fmt: skip
MEMBERS = {
  6: {'liver'},
  15: {'hepatic vessel', 'liver'},
  26: {'kidney tumor'},
  27: {'liver tumor', 'liver'},
  28: {'pancreas tumor', 'pancreas'},
  29: {'hepatic vessel tumor', 'liver'},
  30: {'lung tumor'},
  31: {'colon tumor', 'colon'},
  32: {'kidney cyst'},
  201: {'kidney tumor', 'right kidney'},
  202: {'kidney tumor', 'left kidney'},
  203: {'kidney cyst', 'right kidney'},
  204: {'kidney cyst', 'left kidney'},
  205: {'lung tumor', 'right lung'},
  206: {'lung tumor', 'left lung'},
}
SIDE_WORDS = {
  'right': {'right', 'rt', 'r', 'dexter', 'dextra', 'dextrum'},
  'left': {'left', 'lt', 'l', 'sinister', 'sinistra', 'sinistrum'},
}


def words(phrase):
  return set(re.findall(r'\w+', phrase.casefold()))


def test_indices_and_order():
  assert {s.name: s.index for s in TEMPLATE} == INDICES
  assert TEMPLATE.names() == tuple(sorted(INDICES, key=INDICES.get))
  assert len(TEMPLATE) == 38


@pytest.mark.parametrize('structure', list(TEMPLATE), ids=lambda s: s.name)
def test_phrases(structure):
  phrases = [structure.name, *structure.synonyms, *structure.held_out]
  assert len(structure.synonyms) >= 4
  assert len(structure.held_out) >= 2
  assert len({p.casefold() for p in phrases}) == len(phrases)
  # Commas separate the prompts that a user types.
  assert not any(',' in p or p != ' '.join(p.split()) or not p for p in phrases)
  other = {'right': 'left', 'left': 'right'}.get(structure.side)
  for phrase in phrases:
    assert bool(structure.side) == bool(words(phrase) & SIDE_WORDS.get(structure.side, set()))
    for side in [other] if other else ['right', 'left']:
      assert not words(phrase) & SIDE_WORDS[side], phrase


def test_no_phrase_belongs_to_two_classes():
  owner = {}
  for s in TEMPLATE:
    for phrase in (s.name, *s.synonyms, *s.held_out):
      assert owner.setdefault(phrase.casefold(), s.name) == s.name


def test_held_out_phrases_are_made_of_words_seen_in_training():
  seen = set().union(*(words(p) for s in TEMPLATE for p in (s.name, *s.synonyms)))
  assert {w for s in TEMPLATE for p in s.held_out for w in words(p)} <= seen


def test_mirrored_pairs():
  for s in TEMPLATE:
    if s.side == 'right':
      left = TEMPLATE.get(s.name.replace('right', 'left'))
      assert left.side == 'left'
      assert len(left.synonyms) == len(s.synonyms)
  assert sum(s.side == 'left' for s in TEMPLATE) == sum(s.side == 'right' for s in TEMPLATE) == 5


def test_prompts():
  assert TEMPLATE.get('liver').prompt == 'A computerized tomography of a liver'
  assert TEMPLATE.get('aorta').prompt == 'A computerized tomography of an aorta'
  assert TEMPLATE.get('left lung').prompt == 'A computerized tomography of the left lung'
  for s in TEMPLATE:
    article, name = s.noun.split(' ', 1)
    assert name == s.name
    assert article == 'the' if s.side else article == ('an' if s.name[0] in 'aeiou' else 'a')


def test_code_table():
  names = TEMPLATE.names()
  table = TEMPLATE.code_table(names)
  assert table.shape == (256, 38)
  assert table.dtype == bool
  for code in range(256):
    expected = MEMBERS.get(code, {names[code - 1]} if 1 <= code <= 38 else set())
    assert {n for n, member in zip(names, table[code], strict=True) if member} == expected, code
  part = TEMPLATE.code_table(['liver tumor', 'right kidney'])
  np.testing.assert_array_equal(part, table[:, [26, 1]])


def test_ancestors():
  assert TEMPLATE.ancestors('liver') == frozenset()
  assert TEMPLATE.ancestors('kidney cyst') == {'right kidney', 'left kidney'}
  chain = Template(
    [
      Structure(1, 'a'),
      Structure(2, 'b', parents=('a',)),
      Structure(3, 'c', parents=('b',)),
    ]
  )
  assert chain.ancestors('c') == {'a', 'b'}
  assert chain.code_table(['a', 'b', 'c'])[3].all()


def test_find_and_get():
  assert TEMPLATE.find('  ivc ').name == 'postcava'
  assert TEMPLATE.find('Left  Kidney').index == 3
  assert TEMPLATE.find('mass of the lung').name == 'lung tumor'
  assert TEMPLATE.find('unicorn') is None
  with pytest.raises(ClassError, match="'livr'; did you mean liver"):
    TEMPLATE.get('livr')
  with pytest.raises(ClassError, match='did you mean postcava'):
    TEMPLATE.get('IVC')


@pytest.mark.parametrize(
  ('structures', 'codes', 'message'),
  [
    ([Structure(1, 'a'), Structure(1, 'b')], {}, 'indices'),
    ([Structure(200, 'a')], {}, 'indices'),
    ([Structure(1, 'a'), Structure(2, 'A')], {}, 'both'),
    ([Structure(1, 'a', synonyms=('x',)), Structure(2, 'b', held_out=('X',))], {}, "'X' belongs"),
    ([Structure(1, 'a', parents=('b',))], {}, 'not in the template'),
    ([Structure(1, 'a'), Structure(2, 'b')], {201: ('a', 'b')}, 'code 201'),
  ],
)
def test_bad_templates(structures, codes, message):
  with pytest.raises(ValueError, match=message):
    Template(structures, codes)


def test_structures_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    TEMPLATE.get('liver').index = 7
  with pytest.raises(TypeError):
    anatomy.SIDED_CODES[201] = ('liver', 'liver')


class TestExtend:
  NEW = (
    {'name': 'Sarcoma'},
    {'name': 'liver cyst', 'parent': 'liver', 'synonyms': ['hepatic cyst']},
  )

  def test_new_classes_follow_the_built_in_ones(self):
    longer = TEMPLATE.extend(self.NEW)
    assert longer.names() == (*TEMPLATE.names(), 'sarcoma', 'liver cyst')
    assert longer.get('liver cyst').index == 40
    assert longer.ancestors('liver cyst') == {'liver'}
    assert longer.get('sarcoma').prompt == 'A computerized tomography of a sarcoma'
    assert longer.find('Hepatic  cyst').name == 'liver cyst'
    table = longer.code_table(['liver', 'liver cyst', 'kidney tumor'])
    assert table[40].tolist() == [True, True, False]
    assert table[201].tolist() == [False, False, True]
    assert len(TEMPLATE) == 38

  def test_additions_make_the_same_template(self):
    longer = TEMPLATE.extend([*self.NEW, {'name': 'liver', 'synonyms': ['jecur']}])
    again = TEMPLATE.extend(json.loads(json.dumps(longer.additions())))
    assert again.structures == longer.structures
    assert TEMPLATE.additions() == ()
    assert longer.find('jecur').name == 'liver'

  def test_a_synonym_is_held_out_no_more(self):
    longer = TEMPLATE.extend([{'name': 'liver', 'synonyms': ['Hepatic tissue']}])
    assert 'Hepatic tissue' in longer.get('liver').synonyms
    assert longer.get('liver').held_out == ('parenchyma of the liver',)
    assert TEMPLATE.extend(longer.additions()).structures == longer.structures
    new = TEMPLATE.extend([{'name': 'x', 'synonyms': ['y'], 'held_out': ['Y', 'z', 'X']}])
    assert new.get('x').held_out == ('z',)

  def test_what_a_known_class_is_given_counts_or_is_refused(self):
    longer = TEMPLATE.extend([{'name': 'liver', 'noun': 'the liver'}, {'name': 'spleen'}])
    assert longer.get('liver').prompt == 'A computerized tomography of the liver'
    assert longer.get('spleen') == TEMPLATE.get('spleen')
    assert TEMPLATE.extend(longer.additions()).structures == longer.structures
    for name, side, has in (('liver', 'left', 'none'), ('left lung', 'right', 'left')):
      with pytest.raises(ClassError, match=f"'{name}' is there with side {has}, not {side}"):
        TEMPLATE.extend([{'name': name, 'side': side}])

  @pytest.mark.parametrize('field', ['synonyms', 'held_out'])
  @pytest.mark.parametrize('name', ['liver', 'x'])
  def test_empty_phrases_are_refused(self, name, field):
    with pytest.raises(ClassError, match=f"'{name}': {field} has an empty text; take it out"):
      TEMPLATE.extend([{'name': name, field: ['fine', ' ']}])

  def test_translation_follows_names(self):
    one, two = TEMPLATE.extend(self.NEW), TEMPLATE.extend(self.NEW[::-1])
    table = one.translation(two)
    assert table[[0, 6, 39, 40, 201]].tolist() == [0, 6, 40, 39, 201]
    with pytest.raises(ClassError, match='sarcoma'):
      one.translation(TEMPLATE)

  def test_contradictions(self):
    longer = TEMPLATE.extend(self.NEW)
    with pytest.raises(ClassError, match='liver cyst.*parents'):
      longer.extend([{'name': 'liver cyst', 'parent': 'spleen'}])
    with pytest.raises(ClassError, match='outside 1..199'):
      TEMPLATE.extend([{'name': 'x', 'index': 200}])
    for around in ([('a', 'a')], [('a', 'b'), ('b', 'a')]):
      with pytest.raises(ClassError, match="new class 'a': lies in itself"):
        TEMPLATE.extend([{'name': name, 'parent': parent} for name, parent in around])
    # Which kidney a voxel would lie in, no code could say: it would be a hole in both.
    with pytest.raises(ClassError, match='kidney stone.*several parents'):
      TEMPLATE.extend([{'name': 'kidney stone', 'parents': ['right kidney', 'left kidney']}])
    with pytest.raises(ClassError, match="scar.*lies in 'lung tumor', which has several parents"):
      TEMPLATE.extend([{'name': 'necrosis', 'parent': 'lung tumor'},
                       {'name': 'scar', 'parent': 'necrosis'}][::-1])  # fmt: skip

  def test_a_built_in_class_of_several_parents_may_have_other_names(self):
    longer = TEMPLATE.extend([{'name': 'lung tumor', 'synonyms': ['pancoast']}])
    assert TEMPLATE.extend(longer.additions()).find('pancoast').name == 'lung tumor'

  @pytest.mark.parametrize('noun', TEMPLATE.pairs())
  def test_the_name_of_a_pair_is_no_new_class(self, noun):
    with pytest.raises(ClassError, match=f"'right {noun}' and 'left {noun}'.*'{noun}s together'"):
      TEMPLATE.extend([{'name': noun.title()}])
    together = TEMPLATE.extend([{'name': f'{noun}s together'}])
    assert find_class(f'{noun}s together', together) == f'{noun}s together'
    assert find_class(f'{noun}s', together) == noun

  def test_a_new_pair_and_a_class_of_its_name_exclude_each_other(self):
    sides = [{'name': f'{side} optic nerve', 'side': side} for side in ('right', 'left')]
    assert 'optic nerve' in TEMPLATE.extend(sides).pairs()
    for classes in ([*sides, {'name': 'optic nerve'}], [{'name': 'optic nerve'}, *sides]):
      with pytest.raises(ClassError, match="'optic nerves together'"):
        TEMPLATE.extend(classes)

  @pytest.mark.parametrize('name', ['Background', 'ignore', 'left', 'RIGHT'])
  def test_reserved_names(self, name):
    with pytest.raises(ClassError, match=f'{name.lower()!r}: a label of that name is no class'):
      TEMPLATE.extend([{'name': name}])

  def test_pairs(self):
    assert set(TEMPLATE.pairs()) == {'kidney', 'adrenal gland', 'lung', 'femoral head', 'parotid'}
    assert TEMPLATE.pairs()['femoral head'] == ('right femoral head', 'left femoral head')
