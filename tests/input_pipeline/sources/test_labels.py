import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from input_pipeline import sources
from input_pipeline.ct.components import components
from input_pipeline.sources import labels


def test_map_codes():
  array = np.array([[[0, 1, 2], [5, 0, 1]]], np.int16)
  codes = labels.map_codes(array, {1: 6, 2: 201, 5: 0}, name='case')
  assert codes.dtype == np.uint8
  np.testing.assert_array_equal(codes, [[[0, 6, 201], [0, 0, 6]]])


def test_zero_and_negative_values_can_be_declared():
  array = np.array([[[-1, 0, 3]]], np.int8)
  np.testing.assert_array_equal(
    labels.map_codes(array, {-1: 0, 0: 7, 3: 9}, name='case'), [[[0, 7, 9]]]
  )


@pytest.mark.parametrize('dtype', [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_unknown_values_are_named(dtype):
  array = np.array([[[0, 1, 9, 7, 9]]], dtype)
  with pytest.raises(
    ValueError, match=r'pt_3: label values \[7, 9\].*known: \[0, 1, 2\].*"labels" in dataset.json'
  ):
    labels.map_codes(array, {1: 6, 2: 27}, name='pt_3')


def test_values_beyond_the_codes_need_a_mapping():
  array = np.array([[[0, 780]]], np.uint16)
  assert labels.map_codes(array, {780: 16}, name='case').max() == 16
  with pytest.raises(ValueError, match='-5'):
    labels.map_codes(np.array([[[-5]]]), {1: 1}, name='case')


def test_bad_codes_and_dtypes():
  with pytest.raises(ValueError, match='2: 256'):
    labels.map_codes(np.zeros((1, 1, 1), np.uint8), {2: 256}, name='case')
  with pytest.raises(TypeError, match='case: labels are float32'):
    labels.map_codes(np.zeros((1, 1, 1), np.float32), {1: 1}, name='case')


@given(
  hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)),
  st.dictionaries(st.integers(1, 255), st.integers(0, 255)),
)
def test_equals_a_dictionary_lookup(array, mapping):
  known = {0: 0, **mapping}
  if set(array.ravel().tolist()) <= set(known):
    expected = np.vectorize(known.get, otypes=[np.uint8])(array)
    np.testing.assert_array_equal(labels.map_codes(array, mapping, name='case'), expected)
  else:
    with pytest.raises(ValueError, match='are not declared'):
      labels.map_codes(array, mapping, name='case')


SPACING = (2.0, 2.0, 5.0)
KIDNEYS = {1: 'kidney', 2: 'kidney tumor', 3: 'kidney cyst'}


def kidneys(*boxes, shape=(60, 12, 8)):
  """Label map with a box (first, last, value) along axis 0 for each entry."""
  array = np.zeros(shape, np.uint8)
  for first, last, value in boxes:
    array[first:last, 4:8, 2:6] = value
  return array


def sides(array, image=None, meanings=KIDNEYS):
  """Codes found in each plane along axis 0, as a dict code -> (first, last + 1)."""
  codes = labels.convert(array, meanings, spacing=SPACING, name='case', image=image)
  boxes = {}
  for code in np.unique(codes[codes > 0]).tolist():
    at = np.flatnonzero((codes == code).any((1, 2)))
    boxes[code] = (at[0], at[-1] + 1)
  assert ((codes > 0) == (array > 0)).all()
  return boxes


@pytest.mark.filterwarnings('error')
class TestSides:
  def test_larger_x_is_right_and_lesions_follow_their_kidney(self):
    array = kidneys((5, 15, 1), (8, 10, 2), (44, 54, 1), (54, 56, 3))
    assert sides(array) == {3: (5, 15), 202: (8, 10), 2: (44, 54), 203: (54, 56)}

  def test_one_kidney_is_decided_by_its_side(self):
    assert sides(kidneys((5, 15, 1))) == {3: (5, 15)}
    assert sides(kidneys((45, 55, 1))) == {2: (45, 55)}

  def test_middle_is_that_of_the_body_not_of_the_grid(self):
    # The body fills planes 0..29: a kidney at 18..24 is right of its middle, left of the grid's.
    image = np.full((60, 12, 8), -1000, np.int16)
    image[:30] = 40
    assert sides(kidneys((18, 24, 1)), image) == {2: (18, 24)}
    assert sides(kidneys((18, 24, 1))) == {3: (18, 24)}

  def test_splinters_are_kept_on_their_side(self):
    array = kidneys((5, 15, 1), (44, 54, 1), (20, 21, 1), (56, 57, 1))
    assert sides(array) == {3: (5, 21), 2: (44, 57)}

  def test_nothing_labelled(self):
    assert sides(kidneys()) == {}

  def test_a_source_that_separates_sides_gives_them_to_its_lesions(self):
    meanings = {1: 'right kidney', 2: 'left kidney', 3: 'kidney cyst'}
    array = kidneys((5, 12, 2), (12, 14, 3), (20, 28, 1), (28, 29, 3))
    assert sides(array, meanings=meanings) == {
      3: (5, 12),
      204: (12, 14),
      2: (20, 28),
      203: (28, 29),
    }

  def test_a_lesion_without_its_organ_has_no_side(self):
    assert sides(kidneys((5, 9, 1)), meanings={1: 'kidney tumor'}) == {26: (5, 9)}

  def test_what_a_value_says_of_the_side_holds(self):
    # Both kidneys left of the middle, as in a scan cut off; 4 is what only the pair's contour has.
    meanings = {1: 'right kidney', 2: 'left kidney', 4: 'kidney'}
    meanings[3] = ('right kidney', 'kidney cyst')
    array = kidneys((2, 8, 2), (8, 9, 4), (20, 26, 1), (24, 25, 3), (44, 45, 4))
    assert sides(array, meanings=meanings) == {3: (2, 9), 2: (20, 45), 203: (24, 25)}


class TestDoubtfulSides:
  def test_touching_organs_are_cut_at_the_middle(self):
    with pytest.warns(UserWarning, match='case: kidney: right and left touch'):
      assert sides(kidneys((20, 44, 1))) == {3: (20, 30), 2: (30, 44)}

  @pytest.mark.filterwarnings('error')
  @pytest.mark.parametrize('left', [(2, 10, 1), (0, 0, 1)])
  def test_a_tumor_over_the_middle_is_of_the_kidney_that_it_grows_in(self, left):
    array = kidneys(left, (22, 40, 2), (40, 50, 1))
    known = {3: (2, 10)} if left[1] else {}
    assert sides(array) == known | {201: (22, 40), 2: (40, 50)}

  @pytest.mark.filterwarnings('error')
  def test_a_tumor_most_of_which_is_beyond_the_middle_does_not_take_its_kidney_there(self):
    array = kidneys((2, 6, 1), (8, 40, 2), (40, 50, 1))
    assert sides(array) == {3: (2, 6), 201: (8, 40), 2: (40, 50)}
    assert sides(kidneys((8, 40, 2), (40, 50, 1))) == {201: (8, 40), 2: (40, 50)}

  def test_a_tumor_in_one_of_two_that_touch_is_not_cut(self):
    array = kidneys((16, 46, 1))
    array[28:40, 5:7, 3:5] = 2
    with pytest.warns(UserWarning, match='right and left touch'):
      assert sides(array) == {3: (16, 30), 2: (30, 46), 201: (28, 40)}

  @pytest.mark.parametrize('kidney', [None, 'kidney'])
  def test_a_tumor_over_the_middle_between_sided_kidneys_is_not_cut(self, kidney):
    """Also where the contour of the pair is there too."""
    meanings = {1: 'right kidney', 2: 'left kidney', 3: 'kidney tumor', 4: kidney}
    array = kidneys((2, 12, 2), (26, 42, 3), (42, 50, 1))
    assert sides(array, meanings=meanings) == {3: (2, 12), 201: (26, 42), 2: (42, 50)}
    array = kidneys((8, 18, 2), (18, 36, 3), (48, 50, 1))
    assert sides(array, meanings=meanings) == {3: (8, 18), 202: (18, 36), 2: (48, 50)}

  def test_a_tumor_that_joins_both_is_cut_between_them(self):
    meanings = {1: 'right kidney', 2: 'left kidney', 3: 'kidney tumor'}
    array = kidneys((10, 20, 2), (20, 40, 3), (40, 50, 1))
    assert sides(array, meanings=meanings) == {
      3: (10, 20),
      202: (20, 30),
      201: (30, 40),
      2: (40, 50),
    }

  def test_two_far_apart_on_one_side_mean_that_the_middle_is_wrong(self):
    # A scan cut off at the left: both lie right of the middle, 25 voxels of 2 mm apart.
    with pytest.warns(UserWarning, match='both lie on one side'):
      assert sides(kidneys((31, 36, 1), (55, 60, 1))) == {3: (31, 36), 2: (55, 60)}

  def test_two_near_ones_on_one_side_are_one_broken_kidney(self):
    assert sides(kidneys((40, 46, 1), (50, 56, 1))) == {2: (40, 56)}


def test_two_lone_voxels_in_a_line_are_a_right_and_a_left_one():
  array = np.array([1, 0, 1], np.uint8).reshape(3, 1, 1)
  codes = labels.convert(array, {1: 'kidney'}, spacing=SPACING, name='case')
  assert codes.ravel().tolist() == [3, 0, 2]


@given(st.integers(0, 2**31))
def test_mirroring_swaps_sides(seed):
  rng = np.random.default_rng(seed)
  array = (rng.random((12, 5, 5)) < 0.2).astype(np.uint8)
  options = {'spacing': (10.0, 10, 10), 'name': 'case'}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    one = labels.convert(array, {1: 'lung'}, **options)
    other = labels.convert(array[::-1], {1: 'lung'}, **options)[::-1]
  assert ((one > 0) == (array > 0)).all()
  swapped = np.choose(np.searchsorted([0, 16, 17], other), [0, 17, 16])
  # What lies exactly on the middle plane has no side of its own.
  parts, _ = components(array)
  centres = [np.argwhere(parts == i)[:, 0].mean() for i in range(1, parts.max() + 1)]
  decided = np.isin(parts, [i + 1 for i, c in enumerate(centres) if abs(c - 5.5) > 1e-9])
  np.testing.assert_array_equal(one[decided], swapped[decided])


def test_overlapping_meanings():
  array = np.arange(4, dtype=np.uint8).reshape(1, 1, 4).repeat(2, 0)
  meanings = {1: ('liver',), 2: ('liver', 'liver tumor'), 3: None}
  codes = labels.convert(array, meanings, spacing=SPACING, name='case')
  assert codes[0, 0].tolist() == [0, 6, 27, 0]
  assert labels.classes_of(meanings) == ('liver', 'liver tumor')
  for side in ('right lung', 'left lung'):
    labels.check_meaning(('lung', side))
    labels.check_meaning(('lung', side, 'lung tumor'))
  with pytest.raises(ValueError, match='none contains the other'):
    labels.check_meaning(('liver', 'spleen'))


def test_restricted_meanings():
  meanings = {1: 'kidney', 2: 'kidney tumor', 3: 'liver', 4: 'liver tumor'}
  assert labels.restrict(meanings, ['kidney']) == {1: ('kidney',), 2: ('kidney',), 3: None, 4: None}
  assert labels.restrict(meanings, ['liver tumor'])[4] == ('liver tumor',)
  assert labels.restrict(meanings, ['liver'])[4] == ('liver',)


def test_parotids_of_real_patients(real_data):
  """Clinicians' sides of the parotids of OpenKBP, forgotten and found again."""
  cases = sources.get_source('openkbp').cases(str(real_data / 'openkbp'))
  both = [c for c in cases if {'right parotid', 'left parotid'} <= set(c.supervised)][:12]
  for case in both:
    scan = case.load()
    parotids = np.where(np.isin(scan.codes, [35, 36]), 1, 0).astype(np.uint8)
    codes = labels.convert(
      parotids, {1: 'parotid'}, spacing=scan.geometry.spacing, name=case.name, image=scan.image
    )
    np.testing.assert_array_equal(codes, np.where(parotids, scan.codes, 0))
