"""File names of classes."""

import os
import string
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.anatomy import TEMPLATE
from mome_jax.predict import output_names
from mome_jax.predict.request import make_targets

NEW = (
  '腫瘍',
  '腫瘤',
  'ganglion',
  'metástasis',
  'metastasis',
  '!',
  '?',
  '39 x',
  'straße 1',
  'a_b',
  'a b',
)


def test_names_of_classes_that_are_there_stay():
  targets = make_targets(['Left  Kidney', 'liver', 'Pancake', 'p. 2'])
  assert [output_names.of_class(target) for target in targets] == [
    'left_kidney.nii.gz', 'liver.nii.gz', '200_pancake.nii.gz', '201_p_2.nii.gz',
  ]  # fmt: skip
  for structure in TEMPLATE:
    [target] = make_targets([structure.name])
    assert output_names.of_class(target) == f'{structure.name.replace(" ", "_")}.nii.gz'


def distinct(names):
  """Whether a disk that ignores case and the form of Unicode keeps the names apart."""
  folded = {unicodedata.normalize('NFD', name).casefold() for name in names}
  return len(folded) == len(names)


def test_new_classes_in_any_script_have_files_of_their_own():
  template = TEMPLATE.extend([{'name': name} for name in NEW])
  targets = make_targets([*template.names(), '肝臓', '肝', 'metastasis?'], template)
  names = [output_names.of_class(target) for target in targets]
  assert distinct(names)
  assert '39_腫瘍.nii.gz' in names and 'metastasis.nii.gz' in names


_TEXT = st.text(st.sampled_from(string.ascii_letters[:4] + '0 _-/.…é\u0301腫瘍ßİ\\'), min_size=1)


@given(st.lists(_TEXT, min_size=2, max_size=6), st.integers(0, 80))
def test_no_two_classes_share_a_file(texts, longer):
  texts = [text + 'z' * longer for text in texts if text.strip()]
  texts = list({' '.join(text.casefold().split()): text for text in texts}.values())
  half = len(texts) // 2
  try:
    template = TEMPLATE.extend([{'name': text} for text in texts[:half]])
  except ValueError:  # no name, or one that is there
    template = TEMPLATE
  names = [output_names.of_class(target) for target in make_targets(texts, template)]
  assert distinct(names)
  for name in names:
    assert len(os.fsencode(name)) <= 255
    assert not set(name) & set('/\\:\0')
