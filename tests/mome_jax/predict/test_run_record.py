"""The table of a cohort."""

import csv
import dataclasses
import json
import os

import nibabel as nib
import numpy as np
import pytest
from threshold import Threshold, save_scan

from mome_jax.errors import UserError
from mome_jax.predict import PredictError, prompted_model, run_record, volume_table
from mome_jax.predict.growing_file import GrowingFile
from mome_jax.predict.request import Request
from mome_jax.predict.result import Result
from mome_jax.predict.run_record import RunRecord


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
    'case', 'input', 'status', 'seconds', 'message', 'implausible', 'removed', 'unfamiliar',
    'mandible (ml)', 'liver (ml)',
  ]  # fmt: skip
  assert [(row['case'], row['status']) for row in table] == [
    ('a', 'ok'), ('broken', 'failed'), ('b', 'ok'),
  ]  # fmt: skip
  assert [row['mandible (ml)'] for row in table] == ['0.0', '', '0.0']  # looked for; failed
  assert [row['unfamiliar'] for row in table] == [
    'mandible',
    '',
    'mandible',
  ]  # the legend's verdict
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


@pytest.mark.parametrize('line', ['a,1.2.3,liver', 'a' + ',' * len(volume_table.COLUMNS)])
def test_a_line_with_other_fields_than_the_header_is_told(tmp_path, line):
  header = ','.join(volume_table.COLUMNS)
  path = tmp_path / 'volumes.csv'
  path.write_text(f'{header}\nb{"," * (len(volume_table.COLUMNS) - 1)}\n{line}\n')
  with pytest.raises(UserError, match=r'volumes\.csv: line 2 below the header has other fields'):
    volume_table.read(path)


# ---------------------------------------------------------------------------- as the run goes on
def result(number, verdict='known', volume=1.5):
  rows = [{'name': 'liver', 'label': 1, 'volume_ml': volume, 'verdict': verdict, 'reasons': []}]
  return Result(f'case_{number}', f'in/{number}.nii', 'ok', labels=rows)


def begun(output):
  """A record of a run in an existing folder."""
  output.mkdir(exist_ok=True)
  record = RunRecord(output)
  record.begin(Request(['in']), prompted_model.ask(Threshold(), Request(['in'])), ['a note'],
               existing='overwrite')  # fmt: skip
  return record


def written(output):
  """(finished, cases) of the manifest; cases of the report and of the volumes."""
  manifest = json.loads((output / 'manifest.json').read_text())
  cases = [[row['case'] for row in read_table(output / name)] for name in
           ('report.csv', 'volumes.csv')]  # fmt: skip
  return manifest['finished'], [case['case'] for case in manifest['cases']], *cases


def test_files_are_whole_after_each_scan(tmp_path):
  record = begun(tmp_path / 'out')
  results = [result(number) for number in range(5)]
  names = [one.case for one in results]
  assert written(tmp_path / 'out') == (False, [], [], [])
  for count, one in enumerate(results, 1):
    (tmp_path / 'out' / f'{one.case}_seg.json').write_text('{}')
    record.add(one)
    assert written(tmp_path / 'out') == (False, *[names[:count]] * 3)
  grown = {path.name: path.read_bytes() for path in (tmp_path / 'out').glob('*.csv')}
  record.finish(results)
  assert written(tmp_path / 'out') == (True, *[names] * 3)
  assert grown == {path.name: path.read_bytes() for path in (tmp_path / 'out').glob('*.csv')}
  # An earlier run's lines of the same case are replaced, and others stay.
  record = begun(tmp_path / 'out')
  record.add(result(3, volume=7.5))
  volumes = {row['case']: row['volume_ml'] for row in read_table(tmp_path / 'out' / 'volumes.csv')}
  assert volumes == dict.fromkeys(names, '1.5') | {'case_3': '7.5'}
  assert written(tmp_path / 'out')[1:3] == (['case_3'],) * 2


def test_what_a_scan_costs_does_not_grow_with_the_scans_before_it(tmp_path, monkeypatch):
  record = begun(tmp_path / 'out')
  size = []
  monkeypatch.setattr(GrowingFile, 'write', lambda *_: size.append('the whole file'))
  pwrite = os.pwrite
  monkeypatch.setattr(
    os, 'pwrite', lambda f, data, at: size.append(len(data)) or pwrite(f, data, at)
  )
  for number in range(100, 200):
    record.add(result(number))
  assert len(size) == 300 and 'the whole file' not in size
  assert np.abs(np.subtract(size[:3], size[-3:])).max() <= 4  # digits of the seconds so far


def test_text_beyond_ascii_that_comes_later_gets_its_mark(tmp_path):
  record = begun(tmp_path / 'out')
  report = tmp_path / 'out' / 'report.csv'
  record.add(result(0))
  assert report.read_bytes().startswith(b'case,')
  record.add(dataclasses.replace(result(1), message='Größe'))
  record.add(result(2))
  assert report.read_bytes().startswith(b'\xef\xbb\xbfcase,')
  assert [row['message'] for row in read_table(report)] == ['', 'Größe', '']


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
  record = begun(tmp_path / 'out')
  record.add(result(0))
  before = {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
  pwrite, calls = os.pwrite, []

  def half(file, data, place):  # and room for what was there before
    calls.append(len(data))
    return pwrite(file, data[: len(data) // 2] if len(calls) == 1 else data, place)

  monkeypatch.setattr(os, 'pwrite', half)
  with pytest.raises(PredictError, match='cannot be written'):
    record.add(result(1))
  assert before == {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()}


def test_a_file_that_another_run_wrote_is_written_anew(tmp_path):
  first, second = begun(tmp_path / 'out'), None
  first.add(result(0))
  (tmp_path / 'out' / 'case_0_seg.json').write_text('{}')
  second = begun(tmp_path / 'out')
  second.add(result(1))
  (tmp_path / 'out' / 'case_1_seg.json').write_text('{}')
  first.add(result(2))
  assert {row['case'] for row in read_table(tmp_path / 'out' / 'volumes.csv')} == {
    'case_0', 'case_1', 'case_2',
  }  # fmt: skip
  assert written(tmp_path / 'out')[1:3] == (['case_0', 'case_2'],) * 2


def test_prompts_that_mean_nothing_to_the_model_are_named():
  labels = [result(0, verdict).labels[0] | {'name': verdict} for verdict in ('near', 'unfamiliar')]
  text = run_record.table([Result('a', 'a.nii', 'ok', labels=labels)], ['near', 'unfamiliar'])
  [row] = csv.DictReader(text.splitlines())
  assert row['unfamiliar'] == 'near (near); unfamiliar'
