"""Scans and requests that cannot be used: one line each, and nothing half-written."""

import csv
import gzip
import json
import os
import signal

import nibabel as nib
import numpy as np
import pytest
from threshold import Threshold, patch, save_scan

from input_pipeline.ct import volume
from mome_jax import predict
from mome_jax.inference import router_maps
from mome_jax.inference.segmenter import Segmenter
from mome_jax.predict import (
  command,
  formats,
  probability_maps,
  prompted_model,
)
from mome_jax.predict.request import Options


def listing(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_network_that_overflows_fails_the_scan(run, tmp_path):
  save_scan(tmp_path / 'a.nii.gz')
  for bad in (np.inf, np.nan):
    [result] = run(tmp_path / 'a.nii.gz', threshold=Threshold(lambda x, bad=bad: x * bad))
    assert result.status == 'failed'
    assert "a.nii.gz: the network's output is not finite" in result.message
  assert listing(tmp_path / 'out') == ['manifest.json', 'report.csv', 'volumes.csv']


def test_broken_scans_are_rows_and_cost_nothing_else(run, tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  good = save_scan(folder / 'good.nii.gz').read_bytes()
  (folder / 'truncated.nii.gz').write_bytes(good[: len(good) // 2])
  (folder / 'empty.nii.gz').write_bytes(b'')
  (folder / 'text.nii').write_text('not a scan')
  (folder / 'plain_named_gz.nii.gz').write_bytes(gzip.decompress(good))
  (folder / 'scan.nrrd').write_bytes(b'NRRD0004')
  (folder / 'other.mgz').write_bytes(b'x')
  (folder / 'twin.nii.gz').write_bytes(good)
  (folder / 'twin.nii').write_bytes(gzip.decompress(good))
  shapes = {'flat': (20, 24), 'one_slice': (20, 24, 1), 'several': (9, 9, 9, 3)}
  for name, shape in shapes.items():
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), folder / f'{name}.nii')
  colour = np.zeros((9, 9, 9), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
  nib.save(nib.Nifti1Image(colour, np.eye(4)), folder / 'colour.nii')
  patch(save_scan(folder / 'pixdim.nii'), 84, np.float32(0).tobytes())
  patch(save_scan(folder / 'no_form.nii'), 252, bytes(4))
  patch(save_scan(folder / 'zero_affine.nii'), 280, bytes(48))
  nib.save(nib.Nifti1Image(np.zeros((512, 3, 3), np.int16), np.eye(4)), folder / 'identity.nii')
  expected = {
    'truncated': 'truncated.nii.gz: cannot be read as NIfTI',
    'empty': 'empty.nii.gz: cannot be read, it is empty; copy it again',
    'text': 'text.nii: cannot be read as NIfTI',
    'scan': 'scan.nrrd: cannot be read as NRRD',
    'other.mgz': 'other.mgz: in a format that is not read; convert it',
    'twin': 'twin.nii and twin.nii.gz would both be written as twin_seg; rename one',
    'flat': 'is not 3D',
    'one_slice': 'is not 3D; pass the whole scan',
    'several': r'shape (9, 9, 9, 3) holds several volumes; save one on its own, or predict with '
    '--volume 0 to 2',
    'colour': 'colour or complex',
    'pixdim': 'must be positive mm; convert it from the original again, or predict with '
    '--assume-spacing X,Y,Z',
    'no_form': 'not set (code 0): sides unknown; convert it from the original again, or predict '
    'with --assume-spacing',
    'zero_affine': 'is singular; convert it from the original again, or predict with '
    '--assume-spacing',
    'identity': 'the identity, pixdim is 1 x 1 x 1 mm: sides unknown; convert it',
  }
  results = run(folder)
  failed = [result for result in results if result.status == 'failed']
  sound = ['good', 'plain_named_gz']
  assert [result.case for result in results if result.status == 'ok'] == sound
  assert {result.case for result in failed} == set(expected)
  for result in failed:
    assert expected[result.case] in result.message
    assert '\n' not in result.message
  assert listing(tmp_path / 'out') == sorted([
    'manifest.json', 'report.csv', 'volumes.csv',
    *(f'{n}_seg.{end}' for n in sound for end in ('json', 'nii.gz')),
  ])  # fmt: skip
  with (tmp_path / 'out' / 'report.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['case'], row['status'], row['message']) for row in rows] == [
    (result.case, result.status, result.message) for result in results
  ]


def test_nothing_is_left_half_written(tmp_path, run, monkeypatch):
  save_scan(tmp_path / 'a.nii.gz')
  write = volume.write_nifti

  def full(path, *arguments, **keywords):
    if path.name == 'a_seg.nii.gz':
      raise OSError(28, 'No space left on device', path.name)
    write(path, *arguments, **keywords)

  monkeypatch.setattr(volume, 'write_nifti', full)
  [result] = run(tmp_path / 'a.nii.gz', options=Options(masks=True, probabilities=True))
  assert 'a_seg.nii.gz: No space left on device' in result.message
  assert listing(tmp_path / 'out') == ['manifest.json', 'report.csv', 'volumes.csv']


def test_a_fault_of_the_program_costs_one_scan_and_keeps_its_traceback(
  tmp_path, run, monkeypatch, capsys
):
  (tmp_path / 'in').mkdir()
  for name in ('a', 'b'):
    save_scan(tmp_path / 'in' / f'{name}.nii.gz')
  write = volume.write_nifti

  def faulty(path, *arguments, **keywords):
    if path.name == 'a_seg.nii.gz':
      raise KeyError('planted')
    write(path, *arguments, **keywords)

  monkeypatch.setattr(volume, 'write_nifti', faulty)
  first, second = run(tmp_path / 'in')
  assert (first.status, second.status) == ('failed', 'ok')
  assert "KeyError: 'planted'" in first.message
  printed = capsys.readouterr().err
  assert printed.count('Traceback') == 1 and "raise KeyError('planted')" in printed


EXTRAS = {
  'a_masks': 'masks',
  'a_preview.png': 'preview',
  'a_probabilities': None,  # no format of the table
  'a_report.html': 'report',
}


@pytest.mark.parametrize('name', EXTRAS)
def test_an_output_that_fails_costs_no_other(name, tmp_path, monkeypatch, capsys):
  def fail(place, *_, **__):
    raise RuntimeError('out of\ncolours')

  save_scan(tmp_path / 'a.nii.gz')
  if kind := EXTRAS[name]:
    monkeypatch.setitem(formats.FORMATS, kind, formats.FORMATS[kind]._replace(write=fail))
  else:
    monkeypatch.setattr(probability_maps.ProbabilityMaps, 'write', fail)
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  monkeypatch.setattr(router_maps, 'make_explainer', lambda *_: None)
  options = '--masks', '--probabilities', '--report', '--quiet'
  paths = '--input', str(tmp_path / 'a.nii.gz'), '--output', str(tmp_path / 'out')
  assert predict.main([*paths, *options]) == 1
  reason = f'{name} is not written: RuntimeError: out of colours'
  assert capsys.readouterr().err.splitlines() == [f'incomplete a: {reason}']
  others = [extra for extra in EXTRAS if extra != name]
  assert listing(tmp_path / 'out') == sorted(
    [*others, 'a_seg.json', 'a_seg.nii.gz', 'manifest.json', 'report.csv', 'volumes.csv']
  )
  legend = json.loads((tmp_path / 'out' / 'a_seg.json').read_text())
  assert legend['warnings'] == [reason]
  with (tmp_path / 'out' / 'report.csv').open() as file:
    [row] = csv.DictReader(file)
  assert (row['status'], row['message']) == ('incomplete', reason)
  assert float(row['liver (ml)']) == legend['labels'][0]['volume_ml'] > 0
  monkeypatch.undo()
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  monkeypatch.setattr(router_maps, 'make_explainer', lambda *_: None)
  assert predict.main([*paths, *options, '--skip-done']) == 0  # tried again
  assert name in listing(tmp_path / 'out')
  assert json.loads((tmp_path / 'out' / 'a_seg.json').read_text())['warnings'] == []


def test_a_kill_between_scans_leaves_the_record_of_those_before(tmp_path, run):
  for name in 'abc':
    save_scan(tmp_path / f'{name}.nii')
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'report.csv').write_text('of an earlier run')
  seen = []

  def look(_):
    """What a kill now would leave."""
    manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
    with (tmp_path / 'out' / 'report.csv').open() as file:
      rows = [row['case'] for row in csv.DictReader(file)]
    assert rows == [case['case'] for case in manifest['cases']]
    assert not [name for name in listing(tmp_path / 'out') if name.endswith(('.csv', '.json'))
                and name[0] == '.']  # fmt: skip
    seen.append((rows, manifest['finished']))
    if len(seen) == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(*(tmp_path / f'{name}.nii' for name in 'abc'), on_result=look)
  assert seen == [(['a'], False), (['a', 'b'], False)]
  run(*(tmp_path / f'{name}.nii' for name in 'abc'), existing='skip')
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert manifest['finished']
  assert [case['case'] for case in manifest['cases']] == ['a', 'b', 'c']
  assert [case['status'] for case in manifest['cases']][:2] == ['skipped', 'skipped']


def test_the_scan_that_is_written_when_the_next_is_stopped_is_in_the_tables(
  tmp_path, run, monkeypatch
):
  calls, segment = [], Segmenter.__call__

  def stopped_at_the_second(self, *given, **keywords):
    calls.append(self)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return segment(self, *given, **keywords)

  monkeypatch.setattr(Segmenter, '__call__', stopped_at_the_second)
  with pytest.raises(KeyboardInterrupt):
    run(*(save_scan(tmp_path / f'{name}.nii') for name in 'abc'))
  assert 'a_seg.json' in listing(tmp_path / 'out')
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert [case['case'] for case in manifest['cases']] == ['a']
  with (tmp_path / 'out' / 'volumes.csv').open() as file:
    assert {row['case'] for row in csv.DictReader(file)} == {'a'}


@pytest.mark.parametrize('stage', ['segmenting', 'between scans'])
def test_the_signal_to_end_leaves_nothing_half_written(stage, tmp_path, monkeypatch, capsys):
  def end(x):
    if stage == 'segmenting':
      os.kill(os.getpid(), signal.SIGTERM)
    return x

  def look(_, result):
    os.kill(os.getpid(), signal.SIGTERM)

  for name in 'abc':
    save_scan(tmp_path / f'{name}.nii')
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold(end))
  monkeypatch.setattr(command, '_print_json', look)
  inputs = [str(tmp_path / f'{name}.nii') for name in 'abc']
  options = ['--output', str(tmp_path / 'out'), '--no-preview', '--quiet', '--json', '--overwrite']
  assert predict.main(['--input', *inputs, *options]) == 128 + signal.SIGTERM
  printed = capsys.readouterr().err.strip().splitlines()
  assert len(printed) == 1 and printed[0].startswith('stopped by SIGTERM')
  assert printed[0].endswith('with --skip-done in place of --overwrite goes on')
  done = ['a_seg.json', 'a_seg.nii.gz', 'manifest.json', 'report.csv', 'volumes.csv']
  assert listing(tmp_path / 'out') == (done[2:] if stage == 'segmenting' else done)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'--checkpoint': 'nowhere'}, 'nowhere: no model there; expected a model folder'),
    ({'--input': 'nowhere'}, 'nowhere: no such file or folder; correct --input'),
    ({'--input': 'empty'}, 'empty: no .nii.gz or .nii file and no DICOM CT series'),
    ({'--output': 'scans/a.nii.gz'}, 'scans/a.nii.gz: is a file, no folder'),
    ({'--input': 'scans', '--output': 'scans'}, 'scans: is the input too'),
    ({'--prompts': 'liver,,spleen'}, 'an empty one'),
    ({'--postprocess': 'biggest'}, "is called 'biggest'; known: sides, largest"),
    ({'--prompts-file': 'nowhere.txt'}, 'nowhere.txt: cannot be read as text'),
    ({'--prompts-file': 'empty.txt'}, 'empty.txt: no prompt in it; write one a line'),
    ({'--output': 'done'}, 'done/a_seg.json: results of an earlier run; pass --overwrite or'),
  ],
)
def test_mistakes_are_one_line_and_exit_code_1(changes, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  if 'nowhere' not in changes.values() or '--checkpoint' not in changes:
    monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  for folder in ('empty', 'scans', 'done'):
    (tmp_path / folder).mkdir()
  (tmp_path / 'done' / 'a_seg.json').touch()
  (tmp_path / 'empty.txt').write_text('# nothing\n')
  save_scan(tmp_path / 'a.nii.gz')
  save_scan(tmp_path / 'scans' / 'a.nii.gz')
  options = {'--checkpoint': 'x', '--input': 'a.nii.gz', '--output': 'out'} | changes
  assert predict.main([word for option in options.items() for word in option]) == 1
  printed = capsys.readouterr().err.strip().splitlines()
  assert len(printed) == 1
  assert printed[0].startswith('error: ')
  assert message in printed[0]


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_a_prompts_file_of_a_windows_program(encoding, tmp_path, monkeypatch):
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  save_scan(tmp_path / 'a.nii')
  (tmp_path / 'p.txt').write_bytes('liver\r\n\r\n# note\r\nMöller duct\r\n'.encode(encoding))
  options = {'--checkpoint': 'x', '--input': 'a.nii', '--output': 'out', '--prompts-file': 'p.txt'}
  monkeypatch.chdir(tmp_path)
  assert predict.main(['--force', *(word for option in options.items() for word in option)]) == 0
  legend = json.loads((tmp_path / 'out' / 'a_seg.json').read_text())
  assert [row['name'] for row in legend['labels']] == ['liver', 'möller duct']


def test_random_damage_never_escapes(tmp_path, run):
  """Files with flipped bytes and cut ends are segmented or fail with one line; nothing else."""
  whole = save_scan(tmp_path / 'whole.nii', shape=(6, 7, 8), spacing=(3, 3, 3)).read_bytes()
  packed = gzip.compress(whole)
  rng = np.random.default_rng(0)
  folder = tmp_path / 'in'
  folder.mkdir()
  for number in range(120):
    data = bytearray(packed if number % 3 == 0 else whole)
    reach = len(data) if number % 3 == 0 else 352  # the header
    for place in rng.integers(0, reach, rng.integers(1, 6)):
      data[place] = rng.integers(256)
    if number % 4 == 0:
      data = data[: rng.integers(len(data))]
    (folder / f'{number}.nii{".gz" if number % 3 == 0 else ""}').write_bytes(data)
  results = run(folder)
  assert len(results) == 120
  for result in results:
    written = (tmp_path / 'out' / f'{result.case}_seg.nii.gz').exists()
    assert written == (result.status == 'ok')
    assert '\n' not in result.message
    if result.status == 'failed':
      assert f'{result.case}.nii' in result.message
