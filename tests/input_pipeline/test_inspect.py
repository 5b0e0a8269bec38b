import numpy as np
from matplotlib import image, pyplot

from input_pipeline import bricks, inspect
from input_pipeline.anatomy import TEMPLATE
from tests.input_pipeline.conftest import OWN_SPACING


def test_contact_sheet(tiny_data, tmp_path, capsys):
  assert inspect.main([f'--data_dir={tiny_data}', f'--output={tmp_path}', '--seed=3']) == 0
  assert 'phantom.png: 12 classes' in capsys.readouterr().out
  picture = image.imread(tmp_path / 'phantom.png')[..., :3]
  assert picture.shape[0] > 500
  # Contours are the only saturated colours over the patches, the upper two thirds.
  upper = picture[: picture.shape[0] * 6 // 10]
  assert (np.ptp(upper, axis=-1) > 0.4).sum() > 200
  store = bricks.open_bricks(tiny_data, 'phantom')
  assert {case.own_spacing for case in store.cases} == {OWN_SPACING}
  counts = inspect.contact_sheet(store, tmp_path / 'again.png', patches=4)
  assert counts['liver'][0] == 4  # of six cases, those of the liver and of the organ dataset
  assert counts['liver'][1] == store.class_voxels(['liver']).sum()


def test_the_patients_right_is_on_the_left_as_in_all_pictures():
  label = np.zeros((16, 12, 8), np.uint8)
  label[11:14, 4:8, 2:6] = TEMPLATE.get('liver').index  # axis 0 grows to the right
  example = {'image': np.zeros((*label.shape, 1), np.float32), 'label': label}
  figure = pyplot.figure(figsize=(4, 8))
  table = TEMPLATE.code_table(['liver'])
  axes = figure.subplots(2)
  inspect._draw_patch(axes, example, table, ['liver'], np.array([[1.0, 0, 0, 1]]), (1, 1, 1))
  figure.canvas.draw()
  shown = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
  pyplot.close(figure)
  for half in np.split(shown, 2):
    red = np.argwhere((half[..., 0] > 200) & (half[..., 1:].max(-1) < 80))
    assert len(red) > 50 and red[:, 1].max() < half.shape[1] / 2


def test_nothing_prepared(tmp_path, capsys):
  assert inspect.main([f'--data-dir={tmp_path}']) == 1
  assert 'run python -m input_pipeline.prepare first' in capsys.readouterr().err
  assert inspect.main([f'--data-dir={tmp_path}', '--source=lits']) == 1
  assert 'not prepared' in capsys.readouterr().err
