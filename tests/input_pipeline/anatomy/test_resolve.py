"""Which classes a user's words mean."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.anatomy.resolve import resolve

MEANT = {
  'left parotid': (
    'Left  Parotid', 'Parotid_L', 'PAROTID_LT', 'LParotid', 'ParotidL', 'lparotid', 'parotid-left',
    'Lt. parotid', 'left parotid glands', 'parotid (left)', 'Glnd_Parotid_L', 'leftparotid',
    'sinister parotid', 'the left parotid gland', 'parotid gland on the left side',
  ),
  'right kidney': ('R kidney', 'kidney (right)', 'Kidney_R', 'kidney, right', 'KidneyRt',
                   "the patient's right kidney", 'ren dexter', 'Where is the right kidney?'),
  'right femoral head': ('Femur_Head_R', 'femoral_head_right', 'right heads of femur'),
  'left adrenal gland': ('Glnd_Adrenal_L', 'adrenal_gland_left', 'left suprarenal'),
  'brainstem': ('Brain Stem', 'brain-stem', 'BRAINSTEM', 'BrainStem', 'whole brain stem'),
  'spinal cord': ('spinal_cord', 'SpinalCord', 'SPINAL CORD', 'Cord', 'spinal cords'),
  'esophagus': ('Oesophagus', 'œsophagus', 'the gullet', 'esophagus on CT'),
  'mandible': ('jaw bone', 'Bone_Mandible', 'mandibles', 'lower-jaw', 'segment the mandible'),
  'liver tumor': ('Liver Tumour', 'liver tumours', 'tumours of the liver', 'hepatic metastases',
                  'liver metastases', 'Liver_Metastasis', 'metastases of the liver'),
  'celiac trunk': ('coeliac trunk', 'Cœliac axis', 'A_Celiac', 'coeliac arteries'),
  'postcava': ('ivc', 'V_Venacava_I', 'inferior vena cava'),
  'aorta': ('A_Aorta', 'Aorta'),
  'colon': ('Bowel_Large', 'large bowel'),
  'liver': ('A computerized tomography of a liver', 'contour of the liver', 'hepar',
            'In this CT scan, segment a liver', 'the liver in this scan', 'lobes of liver',
            '+ liver', 'Liver - CT'),
  'left lung': ('Lung - Left', 'lung / L', 'Lung, left'),
  # Signs in place of the 'and' of a name.
  'intestine': ('ileum jejunum', 'ileum/jejunum', 'jejunum & ileum'),
  'portal and splenic vein': ('PV/SV', 'portal vein + splenic vein'),
  'pancreas': ('head, body and tail of pancreas', 'head/body/tail of pancreas'),
}  # fmt: skip
BOTH = {'kidney': ('kidney', 'Kidneys', 'both kidneys', 'bilateral kidney', 'Kidney_Both',
                   'Kidney L+R', 'left & right kidney'),
        'lung': ('lungs', 'left and right lung', 'right/left lungs', 'Lung - L/R'),
        'parotid': ('parotid', 'Parotids', 'parotid glands')}  # fmt: skip
# Other anatomy, less or more than a name, the wrong number of sides, and what is no text at all.
NOTHING = (
  'pineapple pizza', 'GTV', 'tumor', 'left', 'L', 'the', 'jaw', 'spinal canal', 'SpinalCord_PRV',
  'left liver', 'right spinal cord', 'left kidney tumor', 'submandibular gland left', 'heart',
  'no liver', 'larynx and mandible', 'parotis', 'brain', 'stem', 'bowel', '', ' ', '_', '肝臓',
  'Bladder_Wall', 'Rectum_Wall', 'Stomach_Wall', 'Esophagus_Wall', 'Aorta_Wall', 'colon wall',
  'wall of the duodenum', 'Rectum_A', 'RectumA', 'Kidney_A_L', 'Spinal_Cord_Canal', 'Cord_Canal',
  'liver segment', 'segment of the liver', 'lobe of the liver', 'Lobe_Lung_L',
  'rt', 'upper jaw', 'kidney stone', 'lparotidl',
  'kidney + tumor', 'liver+tumor', 'liver & tumor', 'liver/tumor', 'lung+cancer', 'kidney;tumor',
  'hepatic vessels + tumor', 'Liver - Tumor', 'Liver \N{EN DASH} Tumor', 'liver, tumor',
  'liver|tumor', 'left kidney / left tumor', 'Mandible_PRV03', 'Parotid_L_opt', 'zMandible',
  '~Lung_L',
)  # fmt: skip


@pytest.mark.parametrize(
  ('text', 'name'), [(text, name) for name, texts in MEANT.items() for text in texts]
)
def test_spellings_of_a_class(text, name):
  assert [structure.name for structure in resolve(text)] == [name]


@pytest.mark.parametrize(
  ('text', 'organ'), [(text, organ) for organ, texts in BOTH.items() for text in texts]
)
def test_a_paired_organ_without_its_side_is_both(text, organ):
  assert [s.name for s in resolve(text)] == [f'right {organ}', f'left {organ}']


@pytest.mark.parametrize('text', NOTHING)
def test_words_that_name_no_class(text):
  assert resolve(text) == ()


def spellings(phrase):
  """As people and programs write a phrase."""
  words = phrase.split()
  yield from (phrase.upper(), phrase.title(), '_'.join(words), '-'.join(words), f'the {phrase}')
  yield ''.join(word.capitalize() for word in words)
  yield f'  {" ".join(words)}\t'
  if words[0] in ('left', 'right'):
    yield ' '.join([*words[1:], words[0]])
    yield f'{"_".join(words[1:])}_{words[0][0].upper()}'


@pytest.mark.parametrize('structure', list(TEMPLATE), ids=lambda s: s.name)
def test_every_phrase_of_the_table_in_every_spelling(structure):
  for phrase in (structure.name, *structure.synonyms, *structure.held_out):
    for text in (phrase, *spellings(phrase)):
      assert resolve(text) == (structure,), text
  assert resolve(structure.prompt) == (structure,)


WORDS = sorted({
  word for s in TEMPLATE for p in (s.name, *s.synonyms) for word in p.split()
} | {'L', 'rt', 'both', 'the', 'pizza'})  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(' '.join))
def test_what_is_resolved_stays_resolved_and_order_of_case_and_space_does_not_count(text):
  meant = resolve(text)
  for structure in meant:
    assert resolve(structure.name) == (structure,)
  for spelling in (text.upper(), text.replace(' ', '_'), f' {text} '):
    assert resolve(spelling) == meant


def test_a_longer_template_never_confuses_its_classes():
  new = ['livers', 'Metastasis', 'left hippocampus', 'right hippocampus', 'Spinal Cord 2', 'node_1']
  template = TEMPLATE.extend([{'name': name} for name in new])
  for structure in template:
    assert resolve(structure.name, template) == (structure,)
  assert resolve('the liver', template) == ()  # 'liver' or 'livers': nobody knows
  assert resolve('metastases', template)[0].name == 'metastasis'
  mets = TEMPLATE.extend([{'name': 'liver metastasis'}, {'name': 'kidney/tumor'}])
  assert [s.name for s in resolve('Liver_Metastases', mets)] == ['liver metastasis']
  assert [s.name for s in resolve('Kidney_Tumors', mets)] == ['kidney tumor']
  hippocampi = [s.name for s in resolve('hippocampus', template)]
  assert hippocampi == ['right hippocampus', 'left hippocampus']
  names = [resolve(name, template) for name in template.names()]
  assert all(one != other for one, other in itertools.combinations(names, 2))
