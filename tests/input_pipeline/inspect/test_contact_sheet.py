import numpy as np
from matplotlib import pyplot

from input_pipeline import bricks
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.inspect import contact_sheet
from tests.input_pipeline.conftest import OWN_SPACING


def test_counts_cases_and_voxels_of_each_class(tiny_data, tmp_path):
  store = bricks.open_bricks(tiny_data, 'phantom')
  assert {case.own_spacing for case in store.cases} == {OWN_SPACING}
  counts = contact_sheet.contact_sheet(store, tmp_path / 'again.png', patches=1)
  assert counts['liver'][0] == 4  # of six cases, those of the liver and of the organ dataset
  assert counts['liver'][1] == store.class_voxels(['liver']).sum()


def test_the_patients_right_is_on_the_left_as_in_all_pictures():
  label = np.zeros((16, 12, 8), np.uint8)
  label[11:14, 4:8, 2:6] = TEMPLATE.get('liver').index  # axis 0 grows to the right
  image = np.zeros((*label.shape, 1), np.float32)
  image[12, 4:8, 2:6] = 0.1  # in the liver
  example = {'image': image, 'label': label}
  figure = pyplot.figure(figsize=(4, 8))
  red, table = np.array([[1.0, 0, 0, 1]]), TEMPLATE.code_table(['liver'])
  classes = contact_sheet._Classes(['liver'], [1], np.array([36]), red, table)
  axes = figure.subplots(2)
  contact_sheet._draw_patch(axes, example, classes, (1, 1, 1))
  for subplot in axes:  # the marks say so
    marks = {text.get_text(): text.get_position()[0] for text in subplot.texts}
    assert subplot.xaxis_inverted() and marks.keys() == {'R', 'L'}
    assert set(np.nonzero(subplot.images[0].get_array())[1]) == {12}
    assert marks['R'] < 0.1 and marks['L'] > 0.9
    assert all(text.get_transform() == subplot.transAxes for text in subplot.texts)
  figure.canvas.draw()
  shown = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
  pyplot.close(figure)
  for half in np.split(shown, 2):
    red = np.argwhere((half[..., 0] > 200) & (half[..., 1:].max(-1) < 80))
    assert len(red) > 50 and red[:, 1].max() < half.shape[1] / 2


def test_voxels_of_classes_are_dots_on_a_logarithmic_axis():
  """The length of a bar there says nothing; and a class without a voxel has no place."""
  figure, subplot = pyplot.subplots()
  colours, table = np.ones((2, 4)), TEMPLATE.code_table(['liver', 'spleen'])
  classes = contact_sheet._Classes(['liver', 'spleen'], [2, 1], np.array([500, 0]), colours, table)
  contact_sheet._draw_classes(subplot, classes)
  figure.canvas.draw()
  (dots,) = subplot.collections
  shown = np.ma.getdata(dots.get_offsets())[~np.ma.getmaskarray(dots.get_offsets()).any(1)]
  assert shown.tolist() == [[500, 0]] and not subplot.patches
  assert [text.get_text() for text in subplot.get_yticklabels()] == ['liver (2)', 'spleen (1)']
  pyplot.close(figure)


def test_a_source_without_a_voxel_of_its_classes_is_drawn():
  """As scans of healthy patients, whose only class is a tumour."""
  figure, subplot = pyplot.subplots()
  table = TEMPLATE.code_table(['liver tumor'])
  classes = contact_sheet._Classes(['liver tumor'], [2], np.array([0]), np.ones((1, 4)), table)
  contact_sheet._draw_classes(subplot, classes)
  figure.canvas.draw()
  assert [text.get_text() for text in subplot.get_yticklabels()] == ['liver tumor (2)']
  pyplot.close(figure)
