"""Classes outside a scan's field of view: declared, prepared, drawn and refused."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks, prepare, sources
from input_pipeline.anatomy import TEMPLATE, ClassError
from input_pipeline.batches.sampler import PatchSampler
from input_pipeline.bricks import writer
from input_pipeline.errors import UserError
from input_pipeline.sources import Case, field_of_view
from tests.input_pipeline.sources.test_datasets import CONFIG

LABELS = {'background': 0, 'liver': 1, 'kidney': 2, 'spleen': 3}


def folder_of(path, **fields):
  """Cases a and b: liver on the right, two kidneys, and a spleen in a alone."""
  for kind in ('imagesTr', 'labelsTr'):
    (path / kind).mkdir()
  for case in 'ab':
    image = np.full((20, 16, 12), -1000, np.int16)
    image[2:18, 2:14], image[9:11, 3] = 40, 400
    label = np.zeros(image.shape, np.uint8)
    label[12:16, 8:12, 6:10] = 1
    label[4:6, 4:6, 3:6] = label[14:16, 4:6, 3:6] = 2
    label[4:6, 8:12, 6:8] = 3 * (case == 'a')
    for kind, array in (('images', image), ('labels', label)):
      nib.save(nib.Nifti1Image(array, np.diag([8.0, 8, 8, 1])), path / f'{kind}Tr/{case}.nii.gz')
  splits = {'train': ['a'], 'validation': ['b']}
  index = {'labels': LABELS, 'splits': splits, **fields}
  (path / 'dataset.json').write_text(json.dumps(index))
  return {case.name: case for case in sources.get_source('nifti_folder').cases(str(path))}


def test_what_lies_only_in_absent_organs_is_absent_with_them():
  assert field_of_view.closure(['liver']) == {
    'liver', 'liver tumor', 'hepatic vessel', 'hepatic vessel tumor',
  }  # fmt: skip
  assert field_of_view.closure(['right kidney']) == {'right kidney'}
  assert field_of_view.closure(['kidney']) == {
    'right kidney', 'left kidney', 'kidney tumor', 'kidney cyst',
  }  # fmt: skip
  longer = TEMPLATE.extend(
    [{'name': 'a', 'parent': 'liver tumor'}, {'name': 'b', 'parent': 'spleen'}]
  )
  assert {'a'} == field_of_view.closure(['liver'], longer) - field_of_view.closure(['liver'])
  with pytest.raises(ClassError, match='livr'):
    field_of_view.closure(['livr'])


def test_a_case_knows_what_is_labelled_and_what_is_absent():
  case = Case('mine', 'a', 'train', ('aorta',), lambda: None)
  case = field_of_view.declare(case, ['prostate', 'spleen'])
  assert case.supervised == ('spleen', 'aorta', 'prostate')
  assert (case.labelled, case.absent) == (('aorta',), ('spleen', 'prostate'))
  assert field_of_view.declare(case, []) == case
  with pytest.raises(UserError, match='mine/a: aorta is both labelled and declared absent'):
    field_of_view.declare(case, ['aorta'])


def test_only_a_declaration_changes_what_a_prepared_case_is_known_by():
  key = writer.Conversion((1.0, 1.0, 1.0), 32).key
  # Computed by version 0.1, before there were declarations.
  plain = Case('mine', 'a', 'test', ('liver', 'spleen'), len)
  assert key(plain) == '80f207af5270820bd99fed1d'
  absent = dataclasses.replace(plain, absent=('spleen',))
  assert key(absent) != key(plain)
  assert key(absent) != key(dataclasses.replace(plain, absent=('liver',)))


class TestFolder:
  def test_one_list_or_one_a_case(self, tmp_path):
    cases = folder_of(tmp_path, absent=['Brain stem', 'femoral_head'], missing_is='absent')
    assert {case.absent for case in cases.values()} == {
      ('left femoral head', 'right femoral head', 'brainstem')
    }
    assert cases['b'].labelled == ('spleen', 'right kidney', 'left kidney', 'liver')

  def test_a_label_that_a_case_cannot_show_needs_no_other_word(self, tmp_path):
    cases = folder_of(tmp_path, absent={'b': ['spleen']})
    assert (cases['a'].absent, cases['b'].absent) == ((), ('spleen',))
    assert cases['a'].labelled == ('spleen', 'right kidney', 'left kidney', 'liver')
    assert cases['b'].labelled == ('right kidney', 'left kidney', 'liver')
    assert cases['b'].supervised == cases['a'].supervised

  def test_it_wins_where_missing_is_unlabelled(self, tmp_path):
    cases = folder_of(tmp_path, absent={'b': ['spleen']}, missing_is='unlabelled')
    assert cases['b'].absent == ('spleen',)
    assert 'spleen' not in cases['b'].labelled

  @pytest.mark.parametrize(
    ('absent', 'match'),
    [
      ({'a': ['spleen']}, r'a\.nii\.gz: holds spleen, which "absent" declares outside'),
      ({'a': ['left kidney']}, 'names one side of .kidney.'),
      ({'c': ['colon']}, "absent names the case 'c', which is not there"),
      ({'a': ['splen']}, "absent: 'splen' is no class of the template"),
      ('spleen', '"absent" must be a list of classes, or map cases to lists'),
      ({'a': 'spleen'}, '"absent" must be a list'),
      ([3], '"absent" must be a list'),
    ],
  )
  def test_mistakes_are_told_in_one_line(self, tmp_path, absent, match):
    with pytest.raises(UserError, match=match) as told:
      folder_of(tmp_path, absent=absent, missing_is='absent')
    assert '\n' not in str(told.value)

  @pytest.mark.parametrize('supervised', [['liver'], {'a': ['liver'], 'b': ['liver']}])
  def test_a_label_that_contradicts_it_is_told_though_it_is_not_supervised(
    self, supervised, tmp_path
  ):
    """The spleen that case a shows would be taught as background."""
    with pytest.raises(UserError, match=r'a\.nii\.gz: holds spleen, which "absent" declares'):
      folder_of(tmp_path, absent=['spleen'], supervised=supervised)

  def test_of_an_unsupervised_pair_the_other_side_may_be_labelled(self, tmp_path):
    cases = folder_of(tmp_path, absent=['left kidney'], supervised=['liver'])
    assert cases['a'].supervised == ('left kidney', 'liver')
    with pytest.raises(UserError, match='holds kidney, which "absent" declares'):
      (tmp_path / 'more').mkdir()
      folder_of(tmp_path / 'more', absent=['kidney'], supervised=['liver'])

  def test_prepared_absence_is_trained_as_background(self, tmp_path):
    (tmp_path / 'mine').mkdir()
    folder_of(tmp_path / 'mine', absent=['brainstem'], missing_is='absent')
    data = tmp_path / 'data'
    settings = {'manual_dir': str(tmp_path / 'mine'), 'spacing': (8, 8, 8), 'brick': 16}
    prepare.prepare('nifti_folder', data, **settings)
    (held_out,) = bricks.open_volumes(data, 'nifti_folder')
    store = bricks.open_bricks(data, 'nifti_folder')
    for case in (held_out, *store.cases):
      assert case.absent == ('brainstem',)
      assert 'brainstem' in case.supervised and 'brainstem' not in case.labelled
    sampler = PatchSampler(CONFIG, [store], ('brainstem', 'liver', 'larynx'))
    example = sampler.sample(0, 0)
    assert example['supervised'].tolist() == [True, True, False]
    table = TEMPLATE.code_table(['brainstem', 'liver'])
    assert table[example['label']].any((0, 1, 2)).tolist() == [False, True]
    # The declaration goes: the cases are made again, and told of.
    index = json.loads((tmp_path / 'mine/dataset.json').read_text())
    del index['absent']
    (tmp_path / 'mine/dataset.json').write_text(json.dumps(index))
    changes = prepare.prepare('nifti_folder', data, **settings)['changes']
    assert changes == {'added': 0, 'replaced': 2, 'removed': 0, 'kept': 0}
    assert not bricks.open_bricks(data, 'nifti_folder').cases[0].absent
