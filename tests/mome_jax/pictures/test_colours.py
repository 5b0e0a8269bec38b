"""Colours of classes: told apart by the eye, and the same everywhere."""

import highdicom
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, shipped
from mome_jax.configs import demo
from mome_jax.pictures.colours import COLOURS, colour_of, lab, palette

HEAD = ('brainstem', 'spinal cord', 'right parotid', 'left parotid', 'larynx', 'mandible')


def distances(colours):
  """CIELAB distance between each two colours, by highdicom; infinite to itself."""
  lab = [highdicom.color.CIELabColor.from_rgb(*(255 * np.array(colour))).lab for colour in colours]
  lab = np.array(lab)
  apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
  np.fill_diagonal(apart, np.inf)
  return apart


def test_every_class_of_the_template_has_a_colour():
  assert set(COLOURS) == set(TEMPLATE.names())
  assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.parametrize(
  'names', [checkpoint.load_config(shipped.MODEL).classes, demo.get_config().classes]
)
def test_the_classes_of_a_model_are_told_apart(names):
  assert distances([to_rgb(COLOURS[name]) for name in names]).min() > 20


# A difference of 2.3 is just noticeable, one of 10 is seen at a glance.
@pytest.mark.parametrize(
  ('known', 'texts', 'apart'), [((), 3, 30), (HEAD, 3, 30), (HEAD, 12, 25), ((), 30, 20)]
)
def test_free_text_differs_from_all_else(known, texts, apart):
  for start in range(0, 200, texts):
    free = [f'region {number}' for number in range(start, start + texts)]
    colours = palette([*known, *free])
    assert list(colours) == [*known, *free]
    assert all(0 <= value <= 1 for colour in colours.values() for value in colour)
    assert distances(list(colours.values()))[len(known) :].min() > apart
    assert all(colours[name] == colour_of(name) for name in known)


def test_colours_do_not_depend_on_what_comes_after():
  names = ['thymus', 'thyroid', 'liver', 'hepar']
  colours = palette(names)
  assert palette([*names, 'another', 'spleen'])['thymus'] == colours['thymus']
  assert colours['thymus'] == colour_of('thymus')  # nothing near it is taken
  assert palette(names) == colours


def test_lab():
  # sRGB white, black and red under D65: white by definition, red as in Lindbloom's calculator.
  np.testing.assert_allclose(
    lab(np.array([[1.0, 1, 1], [0, 0, 0]])), [[100, 0, 0], [0] * 3], atol=1e-9
  )
  np.testing.assert_allclose(lab(np.array([[1.0, 0, 0]])), [[53.24, 80.09, 67.20]], atol=0.01)
