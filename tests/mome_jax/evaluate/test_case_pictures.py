"""Which cases of an evaluation are drawn, and what of all of them."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from input_pipeline import bricks
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from mome_jax.evaluate.case_pictures import CasePictures
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures import overlay
from tests.mome_jax.inference.test_router_maps import NAMES, SPACING, fake_model, make_explainer

SHAPE = (16, 8, 8)


@pytest.fixture
def template():
  return TEMPLATE.extend([{'name': name} for name in NAMES])


def make_case(name, template):
  codes = np.zeros(SHAPE, np.uint8)
  codes[2:6, 2:6, 2:6] = template.get(NAMES[0]).index
  geometry = volume.to_canonical(codes, np.diag([*SPACING, 1])).geometry
  image = np.full(SHAPE, 50, np.int16)
  return bricks.VolumeRecord(name, 's', 'validation', NAMES, {}, image, codes, geometry)


def draw(folder, number, explainer, template):
  """Two cases, of which the router is asked about the first `number`; how often it was."""
  pictures, asked = CasePictures(folder, number, explainer and explainer[0]), 0
  for name in ('one', 'two'):
    case, watch = make_case(name, template), pictures.watch()
    if watch is not None:
      explainer[1](case.image, SPACING, watch=watch)
      asked += 1
    winner = (case.codes > 0).astype(np.uint8)
    over = np.zeros((*SHAPE, 1), np.uint8)
    pictures.draw(case, Segmentation(NAMES, winner, over, template), watch)
  pictures.finish('_test', [])
  return asked


@pytest.mark.parametrize('number', [0, 1, 2])
def test_the_first_cases_are_drawn_and_the_router_of_all_of_them(tmp_path, template, number):
  assert draw(epath.Path(tmp_path), number, make_explainer(fake_model()), template) == number
  expected = [f'{name}{end}.png' for name in ('one', 'two')[:number] for end in ('', '_routing')]
  expected += ['routing_test.png'] * bool(number)
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)


def test_a_curve_of_an_earlier_evaluation_does_not_stay(tmp_path, template):
  (tmp_path / 'detection_test.png').write_bytes(b'of scans with lesions')
  draw(epath.Path(tmp_path), 0, None, template)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('splits', [1, 2])
def test_scans_of_two_sources_with_one_name_have_a_picture_each(tmp_path, template, splits):
  case, drawn = make_case('one', template), set()
  pictures = [CasePictures(epath.Path(tmp_path), 2, None, drawn) for _ in range(splits)]
  over = np.zeros((*SHAPE, 1), np.uint8)
  segmentation = Segmentation(NAMES, (case.codes > 0).astype(np.uint8), over, template)
  for number, source in enumerate(('hospital_a', 'hospital_b')):
    of_split = pictures[number % splits]
    of_split.draw(dataclasses.replace(case, source=source), segmentation, None)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['hospital_b_one.png', 'one.png']


def test_a_model_without_a_router_has_no_picture_of_it(tmp_path, template):
  assert draw(epath.Path(tmp_path), 1, None, template) == 0
  assert [path.name for path in tmp_path.iterdir()] == ['one.png']


@pytest.mark.parametrize('claimed', [[1], [1, 5], []])
def test_what_a_scan_cannot_show_is_drawn_where_that_is_known(
  tmp_path, template, monkeypatch, claimed
):
  """The second class cannot lie in the upper half of the slices; below, nobody labelled it."""
  case = make_case('one', template)
  case = dataclasses.replace(
    case, absent=NAMES[1:2], slice_ranges={NAMES[1]: (3.5 * SPACING[2], np.inf)}
  )
  winner = (case.codes > 0).astype(np.uint8)
  winner[10:12, 3:5, claimed] = 2
  drawn = {}
  monkeypatch.setattr(overlay, 'overlay', lambda *args: drawn.update(args[3].masks))
  over = np.zeros((*SHAPE, 1), np.uint8)
  CasePictures(epath.Path(tmp_path), 1).draw(
    case, Segmentation(NAMES, winner, over, template), None
  )
  assert (NAMES[1] in drawn) == (5 in claimed)
  if 5 in claimed:
    assert np.flatnonzero(np.asarray(drawn[NAMES[1]]).any((0, 1))).tolist() == [5]
