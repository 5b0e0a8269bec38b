import shutil

import numpy as np
import pytest
from matplotlib import image, pyplot

from input_pipeline import bricks, inspect, throughput
from input_pipeline.batches.augment import DEFAULTS
from input_pipeline.inspect import contact_sheet


def test_contact_sheet(tiny_data, tmp_path, capsys):
  assert inspect.main([f'--data_dir={tiny_data}', f'--output={tmp_path}', '--seed=3']) == 0
  assert 'phantom.png: 12 classes' in capsys.readouterr().out
  picture = image.imread(tmp_path / 'phantom.png')[..., :3]
  assert picture.shape[0] > 500
  # Contours are the only saturated colours over the patches, the upper two thirds.
  upper = picture[: picture.shape[0] * 6 // 10]
  assert (np.ptp(upper, axis=-1) > 0.4).sum() > 200


def test_right_is_on_the_left(tiny_data, tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(pyplot, 'close', figures.append)
  assert inspect.main([f'--data_dir={tiny_data}', f'--output={tmp_path}']) == 0
  patches = [axes for axes in figures[0].axes if axes.images]
  assert len(patches) == 12
  for axes in patches:  # patches keep the patient's axes: the first runs to the right
    left, right = sorted(axes.texts, key=lambda text: text.get_window_extent().x0)
    assert (left.get_text(), right.get_text()) == ('R', 'L')
    first, last = axes.transData.transform([(0, 0), (axes.images[0].get_array().shape[1], 0)])
    assert first[0] > last[0]
  monkeypatch.undo()
  for figure in figures:
    pyplot.close(figure)


def test_each_augmentation_alone(tiny_data, tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(pyplot, 'close', figures.append)
  store = bricks.open_bricks(tiny_data, 'phantom')
  drawn = contact_sheet.augmentations(store, tmp_path / 'alone.png', seed=3)
  switches = {f'p_{name.partition(":")[0]}' for name in drawn}
  assert switches == {name for name in DEFAULTS if name.startswith('p_')}
  phases = ('native', 'arterial', 'portal venous', 'delayed')
  assert [name for name in drawn if ':' in name] == [f'contrast: {name}' for name in phases]
  axes = figures[0].axes[::2]  # axial slices
  assert [a.get_title() for a in axes] == ['as it is', *(name.replace('_', ' ') for name in drawn)]
  plain, *others = (a.images[0].get_array() for a in axes)
  same = {n for n, other in zip(drawn, others, strict=True) if np.array_equal(plain, other)}
  # Other slices may be lost, or end in other places; no bowel is labelled.
  assert same <= {'cut_out', 'field', 'content'}
  np.testing.assert_array_equal(others[drawn.index('mirror')], plain[:, ::-1])
  monkeypatch.undo()
  pyplot.close(figures[0])


def test_nothing_prepared(tmp_path, capsys):
  assert inspect.main([f'--data-dir={tmp_path}']) == 1
  assert 'run python -m input_pipeline.prepare first' in capsys.readouterr().err
  assert inspect.main([f'--data-dir={tmp_path}', '--source=lits']) == 1
  assert 'not prepared' in capsys.readouterr().err


def test_a_seed_below_zero_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    inspect.main([f'--data-dir={tmp_path}', '--seed=-1'])
  assert stop.value.code == 2
  assert "'-1': expected a whole number from 0 on" in capsys.readouterr().err


def test_a_source_without_training_cases_is_passed_over_unless_it_is_named(
  tiny_data, tmp_path, capsys
):
  shutil.copytree(tiny_data / 'phantom', tmp_path / 'phantom')
  (tmp_path / 'ircadb').mkdir()
  shutil.copy(tiny_data / 'phantom' / bricks.SETTINGS, tmp_path / 'ircadb')
  assert bricks.training_sources(tmp_path) == ['phantom']
  for command in (inspect.main, throughput.main):
    assert command([f'--data-dir={tmp_path}', '--source=ircadb']) == 1
    assert 'no training cases of ircadb' in capsys.readouterr().err
  speed = throughput.Throughput(1.0, 1.0, 1)
  with pytest.MonkeyPatch.context() as context:
    context.setattr(throughput, 'measure_apart', lambda args, names, *options: speed)
    assert throughput.main([f'--data-dir={tmp_path}']) == 0
  assert capsys.readouterr().out.startswith('phantom: augmented')
  assert inspect.main([f'--data-dir={tmp_path}']) == 0
  assert {path.name for path in (tmp_path / 'inspect').iterdir()} == {
    'phantom.png', 'phantom_augmentations.png'
  }  # fmt: skip
