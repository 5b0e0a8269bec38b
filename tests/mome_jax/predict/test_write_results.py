"""What is counted of a scan, file names of classes, probabilities, the table of a cohort."""

import csv
import os
import string
import unicodedata

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threshold import Threshold, save_scan

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from mome_jax import predict
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict import write_results
from mome_jax.predict.write_results import Options, file_name, make_targets

NEW = (
  '腫瘍',
  '腫瘤',
  'ganglion',
  'metástasis',
  'metastasis',
  '!',
  '?',
  '39 x',
  'straße 1',
  'a_b',
  'a b',
)


def test_two_lone_voxels_in_a_line_are_two_components():
  array = np.zeros((6, 5, 7), np.float32)
  winner = np.zeros(array.shape, np.uint8)
  winner[2, 3, [2, 4]] = 1
  found = Segmentation(('spleen',), winner, np.zeros((*array.shape, 1), np.uint8))
  scan = volume.to_canonical(array, np.eye(4))
  (row,) = write_results.statistics(scan, found, [write_results.Target(3, 'spleen', 'spleen')])
  assert (row['components'], row['volume_ml']) == (2, 0.002)


# ---------------------------------------------------------------------------- file names
def test_names_of_classes_that_are_there_stay():
  targets = make_targets(['Left  Kidney', 'liver', 'Hepar', 'p. 2'])
  assert [file_name(target) for target in targets] == [
    'left_kidney.nii.gz', 'liver.nii.gz', '200_hepar.nii.gz', '201_p_2.nii.gz',
  ]  # fmt: skip
  for structure in TEMPLATE:
    [target] = make_targets([structure.name])
    assert file_name(target) == f'{structure.name.replace(" ", "_")}.nii.gz'


def distinct(names):
  """Whether a disk that ignores case and the form of Unicode keeps the names apart."""
  folded = {unicodedata.normalize('NFD', name).casefold() for name in names}
  return len(folded) == len(names)


def test_new_classes_in_any_script_have_files_of_their_own():
  template = TEMPLATE.extend([{'name': name} for name in NEW])
  targets = make_targets([*template.names(), '肝臓', '肝', 'metastasis?'], template)
  names = [file_name(target) for target in targets]
  assert distinct(names)
  assert '39_腫瘍.nii.gz' in names and 'metastasis.nii.gz' in names


_TEXT = st.text(st.sampled_from(string.ascii_letters[:4] + '0 _-/.…é\u0301腫瘍ßİ\\'), min_size=1)


@given(st.lists(_TEXT, min_size=2, max_size=6), st.integers(0, 80))
def test_no_two_classes_share_a_file(texts, longer):
  texts = [text + 'z' * longer for text in texts if text.strip()]
  texts = list({' '.join(text.casefold().split()): text for text in texts}.values())
  half = len(texts) // 2
  try:
    template = TEMPLATE.extend([{'name': text} for text in texts[:half]])
  except ValueError:  # no name, or one that is there
    template = TEMPLATE
  names = [file_name(target) for target in make_targets(texts, template)]
  assert distinct(names)
  for name in names:
    assert len(os.fsencode(name)) <= 255
    assert not set(name) & set('/\\:\0')


def test_masks_of_new_classes_do_not_overwrite_each_other(run, tmp_path):
  class Model(Threshold):
    template = TEMPLATE.extend([{'name': name} for name in ('腫瘍', '肝')])

  save_scan(tmp_path / 'a.nii.gz')
  options = Options(preview=False, masks=True, probabilities=True)
  run(tmp_path / 'a.nii.gz', threshold=Model(), prompts=['腫瘍', '肝'], options=options)
  for folder in ('a_masks', 'a_probabilities'):
    names = sorted(os.listdir(tmp_path / 'out' / folder))
    assert names == ['39_腫瘍.nii.gz', '40_肝.nii.gz']
    found = [nib.load(tmp_path / 'out' / folder / name).get_fdata().max() for name in names]
    assert found[0] > 0.9 and found[1] < 0.3


def test_probabilities_stay_within_one(run, tmp_path):
  save_scan(tmp_path / 'a.nii.gz')
  options = Options(preview=False, probabilities=True)
  run(tmp_path / 'a.nii.gz', threshold=Threshold(lambda x: 100 * x), options=options)
  image = nib.load(tmp_path / 'out' / 'a_probabilities' / 'liver.nii.gz')
  stored = np.asarray(image.dataobj.get_unscaled())
  assert stored.max() == 255
  for dtype in (np.float64, np.float32):
    values = image.get_fdata(dtype=dtype)
    assert values.min() == 0
    assert 1 - 1e-6 < values.max() <= 1
    np.testing.assert_allclose(values, stored / 255.0, atol=1e-6)


def test_probabilities_that_find_no_room_cost_only_themselves(run, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full)
  save_scan(tmp_path / 'a.nii.gz')
  [result] = run(tmp_path / 'a.nii.gz', options=Options(preview=False, probabilities=True))
  assert result.message == 'a_probabilities is not written: No space left on device'
  assert sorted(os.listdir(tmp_path / 'out'))[:2] == ['a_seg.json', 'a_seg.nii.gz']


# ---------------------------------------------------------------------------- report.csv
def read_table(path):
  with path.open(encoding='utf-8-sig', newline='') as file:
    return list(csv.DictReader(file))


def test_the_table_has_a_row_a_scan_and_a_column_a_class(run, tmp_path):
  for name, side in (('a', 6), ('b', 10)):
    array = np.full((24, 24, 24), -100, np.int16)
    array[4 : 4 + side, 4 : 4 + side, 4 : 4 + side] = 100
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 3, 1])), tmp_path / f'{name}.nii')
  (tmp_path / 'broken.nii').write_bytes(b'')
  scans = [tmp_path / f'{name}.nii' for name in ('a', 'broken', 'b')]
  run(*scans, prompts=['mandible', 'liver'])
  table = read_table(tmp_path / 'out' / 'report.csv')
  assert list(table[0]) == [
    'case', 'input', 'status', 'seconds', 'message', 'mandible (ml)', 'liver (ml)',
  ]  # fmt: skip
  assert [(row['case'], row['status']) for row in table] == [
    ('a', 'ok'), ('broken', 'failed'), ('b', 'ok'),
  ]  # fmt: skip
  assert [row['liver (ml)'] for row in table] == ['0.0', '', '0.0']  # looked for; failed
  assert table[1]['mandible (ml)'] == ''
  for row, side in ((table[0], 6), (table[2], 10)):
    mask = nib.load(tmp_path / 'out' / f'{row["case"]}_seg.nii.gz').get_fdata()
    assert float(row['mandible (ml)']) == pytest.approx((mask > 0).sum() * 12 / 1000, abs=1e-3)
    assert float(row['mandible (ml)']) == pytest.approx(side**3 * 12 / 1000, rel=0.15)
  run(*scans, prompts=['mandible', 'liver'], existing='skip')
  again = read_table(tmp_path / 'out' / 'report.csv')
  assert [row['status'] for row in again] == ['skipped', 'failed', 'skipped']
  assert [list(row.values())[5:] for row in again] == [list(row.values())[5:] for row in table]


def test_the_table_is_read_by_spreadsheets_in_any_script(run, tmp_path):
  save_scan(tmp_path / 'a.nii.gz')
  run(tmp_path / 'a.nii.gz', prompts=['肝臓', 'a, "b"'])
  assert (tmp_path / 'out' / 'report.csv').read_bytes().startswith(b'\xef\xbb\xbfcase,')
  [row] = read_table(tmp_path / 'out' / 'report.csv')
  assert list(row)[-2:] == ['肝臓 (ml)', 'a, "b" (ml)']
  assert float(row['肝臓 (ml)']) > 0 == float(row['a, "b" (ml)'])
  run(tmp_path / 'a.nii.gz')
  assert (tmp_path / 'out' / 'report.csv').read_bytes().startswith(b'case,')


# ---------------------------------------------------------------------------- devices
@pytest.mark.parametrize(
  'name',
  ['gpu:-1', 'cpu:-1', 'cpu:1.5', 'cpu:9', 'cpu:', ':0', '', 'cpu:+0', 'cpu: 0', 'cpu:0:0', 'npu'],
)
def test_devices_that_do_not_exist_are_named(name):
  with pytest.raises(predict.PredictError) as error:
    predict.find_devices(name)
  assert str(error.value) == f'--device {name}: no such device; there is cpu:0, cpu'


def test_devices():
  assert predict.find_devices(None) is None
  for name in ('cpu', 'cpu:0'):
    [device] = predict.find_devices(name)
    assert (device.platform, device.id) == ('cpu', 0)
