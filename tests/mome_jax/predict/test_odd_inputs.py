"""What users have had on disk, through the real commands: exit codes, rows, and what is written."""

import csv
import json
import os
import pathlib
import runpy
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from threshold import Threshold, save_scan

from input_pipeline import bricks, prepare
from input_pipeline.ct import volume
from mome_jax import evaluate, predict
from mome_jax.evaluate import score_files
from mome_jax.predict import find_scans, prompted_model

DAMAGED = (
  "21_one_header/bad/004.dcm: damaged DICOM (Unknown Value Representation '0x43 0x92' in tag "
  '(0008,0060)); copy it again'
)


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
  """The folder of odd inputs; its writer lies beside the checkout."""
  cases = pathlib.Path(__file__).resolve().parents[4] / 'shared' / 'cases'
  if not (cases / 'make_odd_inputs.py').is_file():
    pytest.skip('the writer of odd inputs is not beside this checkout')
  folder = tmp_path_factory.mktemp('odd')
  runpy.run_path(str(cases / 'make_odd_inputs.py'))['main'](folder)
  return folder


@pytest.fixture
def run_predict(odd, tmp_path, monkeypatch, capsys):
  """run_predict(*inputs) -> exit code, rows of report.csv, standard error."""
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  monkeypatch.chdir(odd)

  def call(*inputs, options=('--no-preview', '--quiet')):
    out = tmp_path / 'out'
    code = predict.main(
      ['--checkpoint', 'x', '--input', *inputs, '--output', str(out), '--overwrite', *options]
    )
    with (out / 'report.csv').open() as file:
      rows = list(csv.DictReader(file))
    for row in rows:
      written = out / f'{row["case"]}_seg.nii.gz'
      assert written.exists() == (row['status'] != 'failed')
      if written.exists():
        legend = json.loads((out / f'{row["case"]}_seg.json').read_text())
        assert legend['input'] == row['input']
    return code, [(row['case'], row['status'], row['input']) for row in rows], capsys.readouterr()

  return call


def test_a_name_in_another_encoding_costs_nothing(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  place = os.fsencode(tmp_path / 'in')
  os.mkdir(place)
  content = save_scan(tmp_path / 'scan.nii').read_bytes()
  for name in (b'M\xfcller.nii', b'Maier.nii', b'M\xfcller broken.nii'):
    pathlib.Path(os.fsdecode(place + b'/' + name)).write_bytes(
      content[:100] if b'broken' in name else content
    )
  words = ['--checkpoint', 'x', '--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out')]
  for more in ([], ['--skip-done']):
    assert predict.main([*words, '--no-preview', *more]) == 1  # the broken one
    shown = capsys.readouterr()
    (shown.out + shown.err).encode()
    text = (tmp_path / 'out' / 'report.csv').read_text()
    assert 'M\ufffdller broken' in text and 'Traceback' not in shown.err
    assert (tmp_path / 'out' / 'M\ufffdller_seg.nii.gz').exists()
    assert (tmp_path / 'out' / 'Maier_seg.nii.gz').exists()


@pytest.mark.parametrize(
  ('inputs', 'code', 'rows'),
  [
    (['01_gz_name'], 0, {'packed': 'packed.nii', 'plain': 'plain.nii.gz'}),
    (['02_dangling'], 1, {'a': 'a.nii.gz', 'b': 'b.nii.gz'}),
    (['03_one_folder_a_patient'], 0, {'s1_ct': 's1/ct.nii.gz', 's2_ct': 's2/ct.nii.gz'}),
    (
      [f'03_one_folder_a_patient/{p}/ct.nii.gz' for p in ('s1', 's2')],
      0,
      {'s1_ct': '', 's2_ct': ''},
    ),
    (['03_dicom_folders_of_one_name'], 0, {'s1_DICOM': 's1/DICOM', 's2_DICOM': 's2/DICOM'}),
    (
      [f'03_dicom_folders_of_one_name/{p}/DICOM' for p in ('s1', 's2')],
      0,
      {'s1_DICOM': '', 's2_DICOM': ''},
    ),
    (['05_rounded'], 0, {'05_rounded': ''}),
    (['06_twice'], 0, {'06_twice': ''}),
    (['07_phases'], 0, {'07_phases_a1': '000.dcm', '07_phases_a2': 'b000.dcm'}),
    (['08_no_preamble'], 0, {'08_no_preamble': ''}),
    (['21_one_header'], 1, {'good': 'good', 'bad': 'bad'}),
  ],
)
def test_predict(inputs, code, rows, run_predict, tmp_path):
  status, listed, _ = run_predict(*inputs)
  assert status == code
  failed = {'b', 'bad'} & set(rows)
  places = (
    inputs if len(inputs) > 1 else [f'{inputs[0]}/{end}'.rstrip('/') for end in rows.values()]
  )
  expected = [
    (case, 'failed' if case in failed else 'ok', place)
    for case, place in zip(rows, places, strict=True)
  ]
  assert sorted(listed) == sorted(expected)
  if failed:
    text = (tmp_path / 'out' / 'report.csv').read_text()
    assert ('link to ../annex/gone, which is not there' in text) != (DAMAGED in text)


@pytest.mark.parametrize('name', ['05_rounded', '06_twice', '08_no_preamble'])
def test_every_slice_is_segmented(name, run_predict, odd, tmp_path):
  run_predict(name)
  mask = nib.load(tmp_path / 'out' / f'{name}_seg.nii.gz')
  assert mask.shape == (8, 8, 8)
  step = {'05_rounded': 0.75}.get(name, 2.5)
  np.testing.assert_allclose(mask.header.get_zooms(), (3, 3, step), rtol=0.01)
  [case], _ = find_scans.find_scans([odd / name])
  scan = find_scans.read(case).volume
  np.testing.assert_allclose(scan.geometry.affine, mask.affine, atol=1e-4)
  voxels = volume.from_canonical(scan.array, scan.geometry)
  for path in (odd / name).glob('???.dcm'):
    ds = pydicom.dcmread(path, force=True)
    k = round(float(ds.ImagePositionPatient[2]) / step)
    stored = np.frombuffer(ds.PixelData, np.int16).reshape(8, 8)  # slope 1, intercept 0
    np.testing.assert_array_equal(voxels[..., k].T, stored)


def test_an_anonymised_series_keeps_all_but_what_its_headers_forbid(run_predict, odd, tmp_path):
  code, rows, printed = run_predict('11_anonymised', options=('--dicom-seg', '--quiet'))
  assert (code, rows) == (1, [('11_anonymised', 'incomplete', '11_anonymised')])
  reason = 'the series has no FrameOfReferenceUID, which the object must repeat'
  assert f'11_anonymised_seg.dcm is not written: {reason}' in printed.err
  assert (tmp_path / 'out' / '11_anonymised_preview.png').exists()
  # Without names alone, the object is made.
  folder = tmp_path / 'nameless'
  shutil.copytree(odd / '11_anonymised', folder)
  for path in folder.iterdir():
    ds = pydicom.dcmread(path)
    ds.FrameOfReferenceUID = '1.2.3'
    ds.save_as(path)
  code, [(_, status, _)], _ = run_predict(str(folder), options=('--dicom-seg', '--quiet'))
  assert (code, status) == (0, 'ok')
  written = pydicom.dcmread(tmp_path / 'out' / 'nameless_seg.dcm')
  assert (written.FrameOfReferenceUID, written.PatientID) == ('1.2.3', '')


def test_predictions_of_channel_names_are_found_by_score(run_predict, odd, tmp_path, capsys):
  code, rows, _ = run_predict('04_channel_names/imagesTs')
  assert (code, [row[0] for row in rows]) == (0, ['a', 'b'])
  references = tmp_path / 'labelsTs'
  shutil.copytree(odd / '04_channel_names' / 'labelsTs', references)
  (references / 'dataset.json').write_text('{"labels": {"background": 0, "liver": 1}}')
  scored = evaluate.main([
    'score', '--predictions', str(tmp_path / 'out'), '--references', str(references),
    '--classes', 'liver', '--output', str(tmp_path / 'scores'),
  ])  # fmt: skip
  assert scored == 0, capsys.readouterr()


def test_a_folder_and_its_archive_are_one_scan_and_failures_are_told_once(
  run_predict, odd, tmp_path
):
  shutil.make_archive(str(tmp_path / '05_rounded'), 'zip', odd / '05_rounded')
  archive = str(tmp_path / '05_rounded.zip')
  code, rows, told = run_predict('05_rounded', archive, options=())
  assert (code, rows) == (0, [('05_rounded', 'ok', '05_rounded')])
  assert told.err.count(f'{archive}: left out, it is the same scan as 05_rounded') == 1
  for options in ((), ('--quiet',)):
    code, _, told = run_predict('21_one_header', options=options)
    assert code == 1
    assert told.err.count(DAMAGED) == 1


LIVER = (slice(2, 5), slice(2, 5), slice(2, 5))  # of every label map in the odd inputs


def run_prepare(folder, data):
  command = ['--source=nifti_folder', f'--manual-dir={folder}', f'--data-dir={data}']
  return prepare.main([*command, '--name=odd', '--spacing=3', '--brick=16'])


@pytest.mark.parametrize('name', ['14_axes', '15_digits', '16_ignore'])
def test_prepare(name, odd, tmp_path, capsys):
  assert run_prepare(odd / name, tmp_path) == 0
  told = capsys.readouterr()
  assert '1 train, 1 validation cases' in told.out
  told = [line for line in told.err.splitlines() if line.startswith(('note: ', 'skipped '))]
  images = odd / name / 'imagesTs'
  assert told == [
    'note: scans of imagesTs without a label map in labelsTs, left out: 1, first '
    f'{images}/case_0201.nii.gz'
  ] * (name == '15_digits')
  (held_out,) = bricks.open_volumes(tmp_path, 'odd')
  assert held_out.supervised == ('liver',)
  expected = np.zeros((8, 9, 10), np.uint8)
  expected[LIVER] = 6
  np.testing.assert_array_equal(held_out.codes, expected)
  assert bricks.open_bricks(tmp_path, 'odd').class_voxels(['liver']).tolist() == [[27]]


@pytest.mark.parametrize('damage', ['dangling', 'cut off'])
def test_prepare_keeps_training_cases_where_the_one_held_out_fails(damage, odd, tmp_path, capsys):
  folder = shutil.copytree(odd / '14_axes', tmp_path / 'given')
  path = folder / 'imagesTr' / 'b_0000.nii.gz'
  content = path.read_bytes()
  path.unlink()
  if damage == 'dangling':
    path.symlink_to('../annex/gone')
  else:
    path.write_bytes(content[:60])
  assert run_prepare(folder, tmp_path / 'data') == 1
  err = capsys.readouterr().err
  assert err.count(f'skipped b: {path}: ') == 1
  assert ('a link to ../annex/gone, which is not there' in err) == (damage == 'dangling')
  assert [case.name for case in bricks.open_bricks(tmp_path / 'data', 'odd').cases] == ['a']
  path.unlink()
  path.write_bytes(content)
  assert run_prepare(folder, tmp_path / 'data') == 0
  assert [case.name for case in bricks.open_volumes(tmp_path / 'data', 'odd')] == ['b']


@pytest.mark.parametrize(
  ('predictions', 'references', 'code', 'scored', 'failed'),
  [
    ('17_one_damaged/predictions', '17_one_damaged/labelsTr', 1, 'a', {'b': 'b.nii.gz: cannot be'}),
    ('14_axes/labelsTr', '17_one_damaged/labelsTr', 0, 'ab', {}),
    ('16_ignore/labelsTr', '16_ignore/labelsTr', 0, 'ab', {}),
    ('02_dangling', '17_one_damaged/labelsTr', 1, '', {'a': 'outside 0..255', 'b': 'annex/gone'}),
    ('15_digits/imagesTs', '15_digits/labelsTr', 1, '', {'a': 'no pred', 'b': 'no prediction of'}),
  ],
)
def test_score(predictions, references, code, scored, failed, odd, tmp_path, capsys):
  out = tmp_path / 'scores'
  command = ['score', f'--predictions={odd / predictions}', f'--references={odd / references}']
  assert evaluate.main([*command, f'--output={out}']) == code
  lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith('not scored: ')]
  assert len(lines) == len(failed)
  for line, (case, reason) in zip(sorted(lines), failed.items(), strict=True):
    assert line.startswith(f'not scored: {case}: ') and reason in line
  assert out.exists() == bool(scored)
  if scored:
    rows = score_files.read(out)
    assert [(row['case'], row['class'], row['dice']) for row in rows] == [
      (case, 'liver', 1.0) for case in scored
    ]
    summary = json.loads((out / 'summary.json').read_text())
    assert [entry['case'] for entry in summary.get('failed', [])] == list(failed)
