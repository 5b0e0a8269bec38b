"""The table of a cohort."""

import csv

import nibabel as nib
import numpy as np
import pytest
from threshold import save_scan

from mome_jax.errors import UserError


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
  run(*scans, prompts=['mandible', 'liver'], force=True)
  table = read_table(tmp_path / 'out' / 'report.csv')
  assert list(table[0]) == [
    'case', 'input', 'status', 'seconds', 'message', 'implausible', 'mandible (ml)', 'liver (ml)',
  ]  # fmt: skip
  assert [(row['case'], row['status']) for row in table] == [
    ('a', 'ok'), ('broken', 'failed'), ('b', 'ok'),
  ]  # fmt: skip
  assert [row['mandible (ml)'] for row in table] == ['0.0', '', '0.0']  # looked for; failed
  assert table[1]['liver (ml)'] == ''
  for row, side in ((table[0], 6), (table[2], 10)):
    mask = nib.load(tmp_path / 'out' / f'{row["case"]}_seg.nii.gz').get_fdata()
    assert float(row['liver (ml)']) == pytest.approx((mask > 0).sum() * 12 / 1000, abs=1e-3)
    assert float(row['liver (ml)']) == pytest.approx(side**3 * 12 / 1000, rel=0.15)
  run(*scans, prompts=['mandible', 'liver'], force=True, existing='skip')
  again = read_table(tmp_path / 'out' / 'report.csv')
  assert [row['status'] for row in again] == ['skipped', 'failed', 'skipped']
  assert [list(row.values())[5:] for row in again] == [list(row.values())[5:] for row in table]


def test_the_table_is_read_by_spreadsheets_in_any_script(run, tmp_path):
  save_scan(tmp_path / 'a.nii.gz')
  run(tmp_path / 'a.nii.gz', prompts=['肝臓', 'a, "b"'], force=True)
  assert (tmp_path / 'out' / 'report.csv').read_bytes().startswith(b'\xef\xbb\xbfcase,')
  [row] = read_table(tmp_path / 'out' / 'report.csv')
  assert list(row)[-2:] == ['肝臓 (ml)', 'a, "b" (ml)']
  assert float(row['肝臓 (ml)']) > 0 == float(row['a, "b" (ml)'])
  run(tmp_path / 'a.nii.gz')
  assert (tmp_path / 'out' / 'report.csv').read_bytes().startswith(b'case,')


def test_volumes_of_a_folder_gather_over_several_runs(run, tmp_path):
  volumes = tmp_path / 'out' / 'volumes.csv'
  for number, name in enumerate('ab'):
    save_scan(tmp_path / f'{name}.nii', seed=number)
    run(tmp_path / f'{name}.nii', prompts=['liver', 'spleen'])
  table = read_table(volumes)
  assert [(row['case'], row['class']) for row in table] == [
    ('a', 'liver'), ('a', 'spleen'), ('b', 'liver'), ('b', 'spleen'),
  ]  # fmt: skip
  for row in table[::2]:
    mask = np.asarray(nib.load(tmp_path / 'out' / f'{row["case"]}_seg.nii.gz').dataobj) > 0
    image = np.asarray(nib.load(tmp_path / f'{row["case"]}.nii').dataobj)
    assert float(row['volume_ml']) == pytest.approx(mask.sum() * 8 * 7 * 9 / 1000, abs=1e-3)
    assert float(row['mean_hu']) == pytest.approx(image[mask].mean(), abs=0.06)
    assert float(row['sd_hu']) == pytest.approx(image[mask].std(), abs=0.06)
    assert (row['present'], row['plausible'], row['series_uid']) == ('true', '', '')
  assert (table[1]['volume_ml'], table[1]['mean_hu'], table[1]['present']) == ('0.0', '', 'false')
  # Another request for one case replaces its lines; a case whose results are gone has none.
  run(tmp_path / 'b.nii', prompts=['liver'], existing='overwrite')
  assert [row['case'] + row['class'] for row in read_table(volumes)] == [
    'aliver', 'aspleen', 'bliver',
  ]  # fmt: skip
  (tmp_path / 'out' / 'a_seg.json').unlink()
  run(tmp_path / 'b.nii', prompts=['liver'], existing='skip')
  assert [row['case'] for row in read_table(volumes)] == ['b']


def test_another_table_called_volumes_is_not_replaced(run, tmp_path):
  save_scan(tmp_path / 'a.nii')
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'volumes.csv').write_text('patient,litres\n1,2\n')
  with pytest.raises(UserError, match=r'volumes\.csv: has other columns'):
    run(tmp_path / 'a.nii')
  assert (tmp_path / 'out' / 'volumes.csv').read_text() == 'patient,litres\n1,2\n'
