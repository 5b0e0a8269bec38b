import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from input_pipeline import labels


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
  with pytest.raises(ValueError, match=r'pt_3: label values \[7, 9\].*known: \[0, 1, 2\]'):
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
    with pytest.raises(ValueError, match='not in the mapping'):
      labels.map_codes(array, mapping, name='case')
