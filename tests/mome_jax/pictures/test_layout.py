"""Text in pictures, whatever script it is in."""

import matplotlib.font_manager
import numpy as np
import pytest
from matplotlib.image import imread

from mome_jax.pictures import layout


def draw(path, title):
  figure, _ = layout.titled(title, 4, 0.5)
  layout.save(figure, path)
  return imread(path)


@pytest.fixture
def fonts(monkeypatch):
  """Only the fonts that come with matplotlib, so that every machine has the same."""
  folder = matplotlib.get_data_path()
  entries = [f for f in matplotlib.font_manager.fontManager.ttflist if f.fname.startswith(folder)]
  monkeypatch.setattr(matplotlib.font_manager.fontManager, 'ttflist', entries)
  layout._family_with.cache_clear()
  yield
  layout._family_with.cache_clear()


@pytest.mark.usefixtures('fonts')
def test_letters_without_a_font_are_boxes_and_no_warning(tmp_path, recwarn, capfd):
  written = draw(tmp_path / 'a.png', 'liver \u809d\u81d3')
  assert not recwarn and not capfd.readouterr().err
  np.testing.assert_array_equal(written, draw(tmp_path / 'b.png', 'liver \u25a1\u25a1'))
  with pytest.raises(AssertionError):
    np.testing.assert_array_equal(written, draw(tmp_path / 'c.png', 'liver'))


@pytest.mark.usefixtures('fonts')
def test_letters_of_another_font_are_drawn_with_it(tmp_path, recwarn, capfd):
  # Latin small letter d with palatal hook: STIXGeneral has it, DejaVu Sans has not.
  written = draw(tmp_path / 'a.png', 'liver \u1d81')
  assert not recwarn and not capfd.readouterr().err
  box = draw(tmp_path / 'b.png', 'liver \u25a1')
  assert written.shape == box.shape and not np.array_equal(written, box)


@pytest.mark.parametrize('name', ['a$_$b', r'$\frac$', 'a$1$b'])
def test_dollars_are_letters(tmp_path, name):
  figure, _ = layout.titled(name, 4, 0.5)
  axes = layout.inches(figure, 0, 0, 4, 0.5)
  layout.caption(axes, name)
  axes.plot([0, 1], label=name)
  axes.legend(**layout.PLAIN)
  layout.save(figure, tmp_path / 'a.png')
  assert (tmp_path / 'a.png').exists()
  boxes = [text.get_window_extent().width for text in figure.texts]
  figure.texts[0].set_text(name.replace('$', ''))
  assert boxes[0] > figure.texts[0].get_window_extent().width  # the dollars were drawn
