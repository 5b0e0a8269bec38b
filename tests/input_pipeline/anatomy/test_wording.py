"""What free text says beside a name, and what joins two names."""

import time

import pytest

from input_pipeline.anatomy import TEMPLATE, vocabulary
from input_pipeline.anatomy.resolve import resolve
from input_pipeline.anatomy.wording import is_beside, objection

HEAD = frozenset(
  ('brainstem', 'spinal cord', 'right parotid', 'left parotid', 'larynx', 'mandible')
)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('no mandible', 'says what to leave out'),
    ('everything but the mandible', 'says what to leave out'),
    ('spinal cord PRV', 'is of a planning volume'),
    ('SpinalCord_PRV', 'is of a planning volume'),
    ('Parotid_L-PTV', 'is of a planning volume'),
    ('spinal cord + 5mm', 'is of a planning volume'),
    ('Mandible_PRV03', 'is of a planning volume'),
    ('Kidney_R_PRV05', 'is of a planning volume'),
    ('Mandible-PTV70', 'is of a planning volume'),
    ('PTVn1_54Gy', 'is of a planning volume'),
    ('GTVp', 'is of a planning volume'),
    ('zPTV', 'is of a planning volume'),
    ('zParotid_L', 'is of a planning volume'),
    ('Parotid_L_opt', 'is of a planning volume'),
    ('Parotid_L_Sub1', 'is of a planning volume'),
    ('avoidance of the larynx', 'is of a planning volume'),
    ('contralateral parotid', 'leaves the side open'),
    ('image left parotid', 'leaves the side open'),
    ("viewer's left parotid", 'leaves the side open'),
    ('mandible and larynx', 'has several names'),
    ('mandible;larynx', 'has several names'),
    ('left parotid and right parotid', 'has several names'),
    ('heart and lungs', 'has several names'),
    ('mandible, larynx', 'has several names'),
    ('liver, mandible', 'has several names'),
    ('mandible. larynx', 'has several names'),
    ('mandible|larynx', 'has several names'),
    ('mandible: larynx', 'has several names'),
    ('mandible or larynx', 'has several names'),
    ('liver+tumor', 'has several names'),
    ('Liver - Tumor', 'has several names'),
    ('mandible larynx', 'has several names'),
    ('left parotid right parotid', 'has several names'),
    ('parotid left larynx lower jaw', 'has several names'),
    ('left or right parotid', 'leaves the side open'),
    ('left', 'names a side alone'),
    ('Lt', 'names a side alone'),
    ('\N{BRAIN}', 'names no structure'),
    ('spinal cord tumor', 'names a finding (tumor)'),
    ('left parotid tumour', 'names a finding (tumor)'),
    ('metastases of the larynx', 'names a finding (metastases)'),
    ('rigth parotid', 'has a typing error; write "right parotid"'),
    ('Mandibel', 'has a typing error; write "mandible"'),
    ('left mandible', 'mandible has no left and right here; ask for mandible'),
  ],
)
def test_what_is_no_structure_is_named(text, said):
  assert not resolve(text)
  assert objection(text, HEAD).startswith(said)


@pytest.mark.parametrize(
  'text',
  [
    'bone of my lower jaw',
    'bone of my lower jaw on CT',
    'my lower jaw line, of a simple type, on contrast CT',
    'vascular bundle',
    'lt. parotid gl.',
    'left half of the mandible',
    'pons',
    'Mandible_Bone',
    'voice box',
    'OptNerve_L',
    'sub mandibular gland',
    'inguinal ring',
    'mandible lower jaw',
  ],
)
def test_other_words_are_left_to_the_judge(text):
  assert not objection(text, HEAD)


@pytest.mark.parametrize('word', ['liver', 'qwertz', 'in a', 'liver,'])
def test_a_report_is_refused_at_once(word):
  text = f'spleen {f"{word} " * 300} spleen'
  count = 2 + 300 * len(word.split()) + 300 * word.count(',')  # that joins names
  start = time.monotonic()
  assert objection(text, HEAD) == f'has {count} words; write the name of one structure'
  assert time.monotonic() - start < 5  # all runs of 300 words were looked up, for some minutes
  assert not objection(f'mandible {"bone " * 39}', HEAD)


@pytest.mark.parametrize('structure', list(TEMPLATE), ids=lambda s: s.name)
def test_nothing_speaks_against_a_phrase_of_the_table(structure):
  for phrase in (structure.name, *structure.synonyms, *structure.held_out):
    for text in (phrase, f'{phrase}.', f'The {phrase}, please'):
      assert not objection(text, HEAD), text


def test_a_planning_volume_that_was_taught_may_be_asked_for():
  template = TEMPLATE.extend([{'name': 'gtv', 'synonyms': ['GTVp']}])
  for text in ('GTV of the larynx', 'GTVp of the larynx'):
    assert objection(text, HEAD, template).startswith('is of a planning volume')
    assert not objection(text, HEAD | {'gtv'}, template).startswith('is of a planning volume')


def test_a_finding_that_was_taught_may_be_asked_for():
  assert objection('tumor of my liver', HEAD)
  assert not objection('tumor of my liver', HEAD | {'liver tumor'})


@pytest.mark.parametrize(
  ('text', 'nearest'),
  [('mass in right kidney', 'right kidney'), ('duodenal tumor', 'duodenum')],
)
def test_a_finding_of_another_organ_was_not_taught_with_that_of_one(text, nearest):
  classes = HEAD | {'liver tumor', nearest}
  assert objection(text, classes, nearest=nearest).startswith('names a finding (')
  assert not objection('lesion in the liver', classes, nearest='liver tumor')


@pytest.mark.parametrize(
  ('text', 'nearest'),
  [
    ('tumor in the left kidney', 'kidney tumor'),
    ('cyst in left kidney', 'kidney cyst'),
    ('tumor in the upper lobe of the left lung', 'lung tumor'),
    ('bone of my left lower jaw', 'mandible'),
  ],
)
def test_a_side_that_the_class_has_not_is_told_of_free_text_too(text, nearest):
  said = objection(text, frozenset((nearest, 'left lung')), nearest=nearest)
  assert said == f'{nearest} has no left and right here; ask for {nearest}'


@pytest.mark.parametrize(
  ('text', 'nearest'),
  [
    ('left half of the mandible', 'mandible'),
    ('left ramus of mandible', 'mandible'),
    ('left hepatic lobe', 'liver'),
    ('left half of the liver', 'liver tumor'),
    ('bone of my left lower jaw', 'left parotid'),
    ('bone of my left lower jaw', ''),
  ],
)
def test_a_side_of_a_part_is_left_to_the_judge(text, nearest):
  assert not objection(text, HEAD | {'liver'}, nearest=nearest)


@pytest.mark.parametrize('word', ['metastases', 'masses', 'carcinomas'])
def test_the_plural_of_a_finding_is_taught_with_its_singular(word):
  text = f'{word} in my liver'
  assert objection(text, HEAD).startswith(f'names a finding ({word})')
  assert not objection(text, HEAD | {'liver tumor'})


@pytest.mark.parametrize(
  ('text', 'nearest'),
  [
    ('mandibular nerve', 'mandible'),
    ('mandibular canal', 'mandible'),
    ('left ramus of mandible', 'mandible'),
    ('spinal cord canal', 'spinal cord'),
    ('cord blood', 'spinal cord'),
    ('end of the spinal cord', 'spinal cord'),
    ('brainstem surface', 'brainstem'),
    ('parotid lymph node', 'right parotid'),
    ('parotid duct', 'right parotid'),
    ('parotid region', 'right parotid'),
    ('kidney vessels', 'hepatic vessel'),
    ('adrenal vein', 'right adrenal gland'),
    ('aortic wall', 'aorta'),
    ('gallbladder wall', 'gallbladder'),
    ('bladder neck', 'bladder'),
    ('prostatic urethra', 'prostate'),
    ('fat around the rectum', 'rectum'),
    ('mesencephalon of the brainstem', 'brainstem'),
    ('box', 'larynx'),
    ('left pipe', 'esophagus'),
    ('my left parotid gland', 'right parotid'),
  ],
)
def test_parts_and_neighbours_of_a_class_are_beside_it(text, nearest):
  assert is_beside(text, nearest)


@pytest.mark.parametrize(
  ('text', 'nearest'),
  [
    ('bone of my lower jaw', 'mandible'),
    ('entire aorta with its wall', 'aorta'),
    ('vessels in my liver', 'hepatic vessel'),
    ('head, body and tail of my pancreas', 'pancreas'),
    ('segment the whole left lung', 'left lung'),
    ('lesion in the liver', 'liver tumor'),
  ],
)
def test_other_words_for_a_class_are_not_beside_it(text, nearest):
  assert not is_beside(text, nearest)


def test_no_name_that_the_vocabulary_has_for_a_declared_class_is_beside_it():
  template = TEMPLATE.extend([{'name': 'thyroid gland'}, {'name': 'heart'}])
  for name in ('thyroid gland', 'heart'):
    for phrase in vocabulary.read(template).get(name).phrases:
      assert not is_beside(phrase, name, template), phrase
  assert is_beside('heart wall', 'heart', template)


@pytest.mark.parametrize('structure', list(TEMPLATE), ids=lambda s: s.name)
def test_no_name_of_a_class_is_beside_it(structure):
  for phrase in (structure.name, *structure.synonyms, *structure.held_out):
    for text in (phrase, f'segment the {phrase}', f'my {phrase}'):
      assert not is_beside(text, structure.name), text


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    ('liver and tumor', ()),
    ('kidney with its tumor', ()),
    ('left and right parotid', ('right parotid', 'left parotid')),
    ('both the left and the right parotid', ('right parotid', 'left parotid')),
    ('portal and splenic vein', ('portal and splenic vein',)),
    ('portal splenic vein', ('portal and splenic vein',)),
    ('CT image of the left parotid', ()),
    ('CT scan of the left parotid', ('left parotid',)),
    ('CT image of the mandible', ('mandible',)),
  ],
)
def test_words_that_join_names(text, names):
  assert tuple(structure.name for structure in resolve(text)) == names
