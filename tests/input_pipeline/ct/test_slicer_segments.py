"""Segmentations of 3D Slicer."""

import nrrd
import numpy as np
import pytest

from input_pipeline.ct import itk_image, slicer_segments, volume
from input_pipeline.ct.slicer_segments import Segment

AFFINE = np.array([[-2.0, 0, 0, 50], [0, -1.5, 0, 60], [0, 0, 3, -70], [0, 0, 0, 1]])
SCAN = volume.to_canonical(np.zeros((12, 10, 8)), AFFINE)


def masks():
  liver = np.zeros((12, 10, 8), bool)
  liver[2:8, 2:8, 2:6] = True
  tumor = np.zeros_like(liver)
  tumor[3:5, 3:5, 3:5] = True
  spleen = np.zeros_like(liver)
  spleen[9:11, 2:5, 2:6] = True
  return {'liver': liver, 'tumor': tumor, 'spleen': spleen}


def test_what_overlaps_is_in_another_layer():
  layers, declared = slicer_segments.layered(masks().items())
  assert declared == [Segment('liver', 0, 1), Segment('tumor', 1, 2), Segment('spleen', 0, 3)]
  for segment in declared:
    expected = masks()[segment.name]
    np.testing.assert_array_equal(layers[..., segment.layer] == segment.value, expected)


def test_a_round_trip_through_a_file(tmp_path):
  layers, declared = slicer_segments.layered(masks().items())
  colours = dict.fromkeys(masks(), (1, 0.5, 0))
  header = slicer_segments.header(declared, colours, SCAN.geometry.shape)
  path = tmp_path / 'a.seg.nrrd'
  itk_image.write(path, layers, SCAN.geometry, header)
  assert slicer_segments.segments(path) == declared
  again = slicer_segments.read(path)
  np.testing.assert_array_equal(again.array, layers)
  np.testing.assert_allclose(again.geometry.affine, AFFINE)
  _, by_pynrrd = nrrd.read(str(path))
  assert by_pynrrd['Segment1_Name'] == 'tumor' and by_pynrrd['Segment1_Layer'] == '1'
  assert by_pynrrd['Segment1_Color'] == '1 0.5 0' and by_pynrrd['kinds'][0] in ('vector', 'list')


def cut(offset=(3, 2, 1), shape=(5, 6, 4), move=(0, 0, 0)):
  """A part of the grid, in its file's own axes."""
  affine = AFFINE.copy()
  affine[:3, 3] = (AFFINE @ [*(np.array(offset) + move), 1])[:3]
  rng = np.random.default_rng(0)
  stored = rng.integers(0, 3, shape, np.uint8)
  return volume.to_canonical(stored, affine), stored


def test_a_part_is_put_where_it_lies_in_the_scan():
  part, stored = cut()
  whole = np.zeros((12, 10, 8), np.uint8)
  whole[3:8, 2:8, 1:5] = stored
  embedded = slicer_segments.embed(part, SCAN.geometry)
  assert embedded.geometry is SCAN.geometry
  np.testing.assert_array_equal(volume.from_canonical(embedded.array, SCAN.geometry), whole)


@pytest.mark.parametrize('other', [
  cut(move=(0.4, 0, 0)), cut((2, 0, 0), (12, 10, 8)), cut((-1, 0, 0)), cut((9, 2, 1)),
  cut(shape=(13, 10, 8), offset=(0, 0, 0)),
])  # fmt: skip
def test_what_is_no_part_stays_as_it_is(other):
  assert slicer_segments.embed(other[0], SCAN.geometry) is other[0]


def test_the_common_grid_of_two_parts_holds_both():
  one, other = cut((3, 2, 1), (5, 6, 4))[0], cut((1, 4, 0), (4, 6, 6))[0]
  grid = slicer_segments.common(one.geometry, other.geometry)
  # Indices of the file's own axes 1..8, 2..10 and 0..6; two of its axes run backwards.
  assert grid.canonical_shape == (7, 8, 6)
  np.testing.assert_allclose(grid.spacing, (2, 1.5, 3))
  np.testing.assert_allclose(grid.affine[:3, 3], (AFFINE @ [7, 9, 0, 1])[:3])
  for part in (one, other):
    embedded = slicer_segments.embed(part, grid)
    assert embedded.geometry is grid and embedded.array.sum() == part.array.sum()
  assert slicer_segments.common(one.geometry, cut(move=(0.4, 0, 0))[0].geometry) is None
