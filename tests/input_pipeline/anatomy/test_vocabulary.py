"""The vocabulary: no phrase means two things, sides are paired, the usual names are known."""

import collections

import pytest

from input_pipeline.anatomy import TEMPLATE, vocabulary

VOCABULARY = vocabulary.read()
FILE = [term for term in VOCABULARY if term.name not in TEMPLATE.names()]
# Sided, and the body has nothing like them on the other side.
ONE_SIDED = {'right middle lobe of the lung', 'left anterior descending artery'}

# Names of the total task of TotalSegmentator 2, without vertebrae and ribs; sided ones get _left
# and _right.
TOTAL = """spleen gallbladder liver stomach pancreas lung_middle_lobe_right esophagus trachea
thyroid_gland small_bowel duodenum colon urinary_bladder prostate sacrum vertebrae_S1 heart aorta
pulmonary_vein brachiocephalic_trunk superior_vena_cava inferior_vena_cava
portal_vein_and_splenic_vein spinal_cord brain skull sternum costal_cartilages
atrial_appendage_left"""
TOTAL_SIDED = """kidney adrenal_gland lung_upper_lobe lung_lower_lobe subclavian_artery
common_carotid_artery brachiocephalic_vein iliac_artery iliac_vena humerus scapula clavicula femur
hip gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas"""
LEVELS = 'C' * 7 + 'T' * 12 + 'L' * 5
SPINE = [*range(1, 8), *range(1, 13), *range(1, 6)]
BONES = [
  *(
    f'vertebrae_{letter}{n}' for letter, n in zip('C' * 7 + 'T' * 12 + 'L' * 5, SPINE, strict=True)
  ),
  *(f'rib_{side}_{n}' for side in ('left', 'right') for n in range(1, 13)),
]

# Organs at risk as radiotherapy plans spell them (AAPM TG-263), and what their plans aim at.
PLANNED = """Brain Pituitary OpticChiasm OpticNrv_L OpticNrv_R Eye_L Eye_R Lens_L Lens_R
Glnd_Lacrimal_L Cochlea_L Cochlea_R Hippocampus_L Lobe_Temporal_R Cavity_Oral Lips Glnd_Submand_L
Glnd_Thyroid Musc_Constrict Joint_TM_L Pharynx BrachialPlex_R A_Carotid_L SpinalCanal Trachea Carina
Bronchus_L Heart A_LAD Pericardium Chestwall Breast_L Sternum V_Venacava_S Bag_Bowel Kidney_Cortex_L
RenalPelvis_R Ureter_L Colon_Sigmoid Canal_Anal PenileBulb SeminalVes Uterus Ovary_L Vagina
CaudaEquina Sacrum Femur_L LN_Pelvics External Skin GTV CTV PTV GTVn"""


def _known(name):
  words = name.split('_')
  side = next((word for word in words if word in ('left', 'right')), '')
  organ = ' '.join(word for word in words if word != side)
  return VOCABULARY.find(name) or VOCABULARY.find(f'{side} {organ}')


def test_counts():
  kinds = collections.Counter(term.kind for term in FILE)
  assert len(FILE) >= 300
  assert kinds['structure'] >= 250
  assert kinds['finding'] >= 50
  assert set(kinds) == set(vocabulary.KINDS)
  assert {term.region for term in VOCABULARY} == set(vocabulary.REGIONS)
  assert all(2 <= len(term.synonyms) <= 8 for term in FILE)
  assert all(1 <= len(term.held_out) <= 2 for term in FILE)


def test_no_phrase_belongs_to_two_terms_nor_twice_to_one():
  owners = collections.Counter(
    vocabulary.fold(phrase) for term in VOCABULARY for phrase in term.phrases
  )
  assert [phrase for phrase, count in owners.items() if count > 1] == []
  assert len(TEMPLATE) + len(FILE) == len(VOCABULARY)  # no term names a class of the template


def test_phrases_are_clean():
  for term in VOCABULARY:
    assert term.name == ' '.join(term.name.casefold().split())
    assert all(phrase == ' '.join(phrase.split()) != '' for phrase in term.phrases), term
    assert all(phrase.isascii() for phrase in term.phrases), term


def test_sides_come_in_pairs():
  for term in VOCABULARY:
    words = term.name.split()
    assert term.side in ('', 'left', 'right')
    assert term.side in words or not term.side
    assert term.organ == term.name.replace(f'{term.side} ', '', 1) if term.side else term.name
    if term.side and term.name not in ONE_SIDED:
      mirrored = {'left': 'right', 'right': 'left'}[term.side]
      partner = VOCABULARY.get(term.name.replace(term.side, mirrored, 1))
      assert (partner.side, partner.organ) == (mirrored, term.organ)
      assert (partner.kind, partner.region) == (term.kind, term.region)
      assert len(partner.synonyms) == len(term.synonyms)


def test_no_phrase_says_the_other_side():
  left, right = {'left', 'lt', 'sinister', 'sinistra'}, {'right', 'rt', 'dexter', 'dextra'}
  other = {'left': right, 'right': left}
  for term in VOCABULARY:
    for phrase in term.phrases if term.side else ():
      said = set(vocabulary.fold(phrase).split())
      assert not said & other[term.side], (term.name, phrase)


def test_parents_are_there_and_contain_nothing_of_themselves():
  for term in VOCABULARY:
    assert all(VOCABULARY.get(parent) for parent in term.parents)
    assert term.name not in VOCABULARY.ancestors(term.name)
  assert VOCABULARY.ancestors('left rib 3') == {'rib cage', 'skeleton'}
  assert VOCABULARY.get('liver tumor').parent == 'liver'
  assert VOCABULARY.get('lung tumor').parent == ''  # right or left: not one


@pytest.mark.parametrize('name', [*TOTAL.split(), *BONES])
def test_names_of_totalsegmentator(name):
  assert _known(name) is not None


@pytest.mark.parametrize('name', TOTAL_SIDED.split())
@pytest.mark.parametrize('side', ['left', 'right'])
def test_sided_names_of_totalsegmentator(name, side):
  assert _known(f'{name}_{side}').side == side


@pytest.mark.parametrize('name', PLANNED.split())
def test_names_of_radiotherapy(name):
  assert VOCABULARY.find(name) is not None


@pytest.mark.parametrize(
  ('outer', 'inner'),
  [
    ('brain', 'brainstem'),
    ('left hip bone', 'left acetabulum'),
    ('bowel bag', 'colon'),
    ('skeleton', 'left rib 3'),  # by way of the rib cage
  ],
)
def test_what_may_contain_another(outer, inner):
  assert outer in VOCABULARY.ancestors(inner)
  assert inner not in VOCABULARY.ancestors(outer)


def test_a_phrase_is_recognized_however_it_is_typed():
  for text in ('Optic_Chiasm', 'OPTIC  CHIASM', 'optic-chiasm'):
    assert VOCABULARY.find(text).name == 'optic chiasm'
  assert VOCABULARY.find('pineapple pizza') is None
  assert VOCABULARY.find('') is None


def test_a_new_class_takes_the_place_of_its_term():
  template = TEMPLATE.extend(
    [
      {'name': 'thyroid', 'synonyms': ['thyroid tissue']},
      {'name': 'left optic nerve', 'side': 'left'},
      {'name': 'thyroid parenchyma'},  # also a phrase of what the file calls thyroid gland
      {'name': 'widget'},
    ]
  )
  longer = vocabulary.read(template)
  thyroid = longer.get('thyroid')
  assert thyroid.region == 'neck'
  assert {'thyroid gland', 'Glnd_Thyroid', 'thyroid tissue'} <= set(thyroid.synonyms)
  assert thyroid.held_out == VOCABULARY.get('thyroid gland').held_out
  assert longer.find('thyroid gland') is thyroid
  assert longer.get('thyroid nodule').parents == ('thyroid',)  # no longer called thyroid gland
  assert longer.find('thyroid parenchyma').name == 'thyroid parenchyma'
  assert 'thyroid parenchyma' not in thyroid.phrases
  assert longer.get('left optic nerve').region == 'head'
  assert longer.get('widget').region == 'body'
  assert len(longer) == len(template) + len(FILE) - 2


def test_classes_that_contain_each_other_by_way_of_a_term():
  template = TEMPLATE.extend([{'name': 'skeleton', 'parent': 'mandible'}])
  assert vocabulary.read(template).ancestors('mandible') == {'skull', 'skeleton', 'mandible'}
