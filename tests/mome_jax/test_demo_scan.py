"""The scan that comes with the package, and `predict --demo`."""

import json
import re

import nibabel
import numpy as np
import pytest

from mome_jax import predict, shipped
from mome_jax.inference.loaded_model import SHIPPED


def test_it_is_made_as_its_page_says(real_data, tmp_path, monkeypatch):
  page = (shipped.SCAN.parent / 'README.md').read_text()
  [program] = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
  (tmp_path / 'val').symlink_to(real_data / 'openkbp' / 'val')
  monkeypatch.chdir(tmp_path)
  exec(compile(program, 'README.md', 'exec'), {})
  made, kept = (nibabel.load(path) for path in ('head_neck.nii.gz', shipped.SCAN))
  assert np.array_equal(made.dataobj, kept.dataobj)
  assert np.array_equal(made.affine, kept.affine)
  assert kept.get_data_dtype() == np.int16
  licence = (real_data / 'openkbp' / 'LICENSE').read_text()
  assert (shipped.SCAN.parent / 'LICENSE').read_text() == licence


def test_it_is_small():
  assert shipped.SCAN.stat().st_size < 1e6


@pytest.mark.slow
def test_its_organs_are_found(real_data, tmp_path):
  assert predict.main(['--demo', '--output', str(tmp_path / 'out'), '--quiet']) == 0
  labels = nibabel.load(tmp_path / 'out' / 'head_neck_seg.nii.gz')
  legend = json.loads((tmp_path / 'out' / 'head_neck_seg.json').read_text())['labels']
  config = json.loads((SHIPPED / 'config.json').read_text())
  assert [entry['name'] for entry in legend] == config['classes']
  assert all(entry['present'] for entry in legend)
  contours = nibabel.load(real_data / 'openkbp' / 'val' / 'pt_236_oar.nii.gz')
  contours = np.asarray(contours.slicer[0:70, 26:104, 14:104].dataobj)
  dice = {}
  for number, entry in enumerate(legend, 1):  # in the order of OpenKBP's codes
    ours, theirs = np.asarray(labels.dataobj) == entry['label'], contours == number
    dice[entry['name']] = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
  assert min(dice.values()) > 0.5 and np.mean(list(dice.values())) > 0.7, dice


def test_a_demo_takes_no_input(capsys):
  with pytest.raises(SystemExit) as end:
    predict.main(['--demo', '--input', 'scan.nii.gz', '--output', 'out'])
  assert end.value.code == 2
  assert '--input: not allowed with argument --demo' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    predict.main(['--output', 'out'])
  assert '--input --demo is required' in capsys.readouterr().err
