import numpy as np
from matplotlib import image

from input_pipeline import inspect


def test_contact_sheet(tiny_data, tmp_path, capsys):
  assert inspect.main([f'--data_dir={tiny_data}', f'--output={tmp_path}', '--seed=3']) == 0
  assert 'phantom.png: 12 classes' in capsys.readouterr().out
  picture = image.imread(tmp_path / 'phantom.png')[..., :3]
  assert picture.shape[0] > 500
  # Contours are the only saturated colours over the patches, the upper two thirds.
  upper = picture[: picture.shape[0] * 6 // 10]
  assert (np.ptp(upper, axis=-1) > 0.4).sum() > 200


def test_nothing_prepared(tmp_path, capsys):
  assert inspect.main([f'--data-dir={tmp_path}']) == 1
  assert 'run python -m input_pipeline.prepare first' in capsys.readouterr().err
  assert inspect.main([f'--data-dir={tmp_path}', '--source=lits']) == 1
  assert 'not prepared' in capsys.readouterr().err
