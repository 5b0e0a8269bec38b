"""The table of a cohort."""

import csv

import nibabel as nib
import numpy as np
import pytest
from threshold import save_scan


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
