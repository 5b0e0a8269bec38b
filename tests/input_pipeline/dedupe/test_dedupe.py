"""Copies of one patient in several datasets go to one split."""

import dataclasses
import functools
import json
import os
import pathlib

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks, dedupe, prepare, sources
from input_pipeline.patients import patient_groups
from input_pipeline.sources import files


def test_a_group_never_crosses_splits(real_data, tmp_path, capsys):
  """One patient in two datasets: both copies go where the more held-out one is."""
  scan = nib.load(real_data / 'ibsi_sts' / 'STS_008_CT_image.nii.gz')
  label = nib.Nifti1Image(np.ones(scan.shape, np.uint8), scan.affine)
  other = nib.load(real_data / 'ibsi_sts' / 'STS_012_CT_image.nii.gz')
  amos, word = tmp_path / 'amos', tmp_path / 'word'
  for folder in ('imagesTr', 'labelsTr', 'imagesTs', 'labelsTs'):
    (amos / folder).mkdir(parents=True)
    (word / folder).mkdir(parents=True)
  nib.save(scan, amos / 'imagesTr' / 'amos_0001.nii.gz')
  nib.save(label, amos / 'labelsTr' / 'amos_0001.nii.gz')
  nib.save(scan.slicer[:, :, 8:], word / 'imagesTs' / 'word_0001.nii.gz')
  nib.save(label.slicer[:, :, 8:], word / 'labelsTs' / 'word_0001.nii.gz')
  nib.save(other, word / 'imagesTr' / 'word_0002.nii.gz')
  filled = nib.Nifti1Image(np.ones(other.shape, np.uint8), other.affine)
  nib.save(filled, word / 'labelsTr' / 'word_0002.nii.gz')
  output = tmp_path / 'groups.json'
  downloads = [f'--download=amos22={amos}', f'--download=word={word}']
  assert dedupe.main([*downloads, f'--output={output}']) == 0
  (group,) = json.loads(output.read_text())['groups']
  assert group['split'] == 'test'
  assert group['members'] == [['amos22', 'amos_0001'], ['word', 'word_0001']]
  cases = sources.get_source('amos22').cases(str(amos))
  assert [case.split for case in cases] == ['train']
  (moved,), notes = patient_groups.keep_together(cases, [group])
  assert moved.split == 'test' and not notes
  command = ['--source=amos22', f'--manual-dir={amos}', f'--data-dir={tmp_path / "data"}']
  assert prepare.main([*command, '--spacing=6', '--brick=16', f'--groups={output}']) == 0
  assert '1 test cases' in capsys.readouterr().out
  patients = bricks.read_patients(tmp_path / 'data', 'amos22')
  assert patients == {('amos22', 'amos_0001'): 'amos22/amos_0001'}
  # Without the file, the scan would go back to training.
  assert prepare.main([*command, '--spacing=6', '--brick=16']) == 1
  assert 'prepared with --groups; pass the file again' in capsys.readouterr().err
  output.write_text('{}')
  assert prepare.main([*command, '--spacing=6', '--brick=16', f'--groups={output}']) == 1
  assert 'groups.json: not a file of mome dedupe' in capsys.readouterr().err


def test_groups_that_were_found_before_scans_came_or_changed_are_not_current(tmp_path, capsys):
  def write(name, seed):
    image = np.full((12, 12, 12), -1000, np.int16)
    image[3:9, 3:9, 3:9] = np.random.default_rng(seed).integers(0, 100, (6, 6, 6))
    for part, array in (('images', image), ('labels', (image > -500).astype(np.uint8))):
      (tmp_path / 'word' / f'{part}Tr').mkdir(parents=True, exist_ok=True)
      scan = nib.Nifti1Image(array, np.diag([6.0, 6, 6, 1]))
      nib.save(scan, tmp_path / 'word' / f'{part}Tr' / f'{name}.nii.gz')

  write('word_0001', 0)
  write('word_0002', 1)
  find = [f'--download=word={tmp_path / "word"}', f'--output={tmp_path / "groups.json"}']
  command = ['--source=word', f'--manual_dir={tmp_path / "word"}', '--spacing=6', '--brick=8']
  command += [f'--data_dir={tmp_path / "data"}', f'--groups={tmp_path / "groups.json"}']
  assert dedupe.main(find) == 0 and prepare.main(command) == 0
  write('word_0003', 2)
  assert prepare.main(command) == 1
  message = capsys.readouterr().err.splitlines()[-1]
  assert '1 of 3 scans were not there' in message and 'such as word_0003' in message
  assert f'--download=word={tmp_path / "word"}' in message
  assert dedupe.main(find) == 0 and prepare.main(command) == 0
  assert '1 added, 2 kept' in capsys.readouterr().out
  write('word_0001', 3)  # random voxels: compressed to another size
  assert prepare.main(command) == 1
  assert 'such as word_0001' in capsys.readouterr().err
  assert dedupe.main(find) == 0 and prepare.main(command) == 0
  assert '1 replaced, 2 kept' in capsys.readouterr().out
  content = json.loads((tmp_path / 'groups.json').read_text())
  # A file of before that notes the bytes alone, and one that notes nothing, which is told.
  sizes = [[source, name, size] for source, name, size, _ in content['scans']]
  (tmp_path / 'groups.json').write_text(json.dumps(content | {'scans': sizes}))
  assert prepare.main(command) == 0
  (tmp_path / 'groups.json').write_text(json.dumps({'groups': content['groups']}))
  assert prepare.main(command) == 0
  assert 'does not say which scans were compared' in capsys.readouterr().err
  # What could not be read was compared with nothing: preparing says so.
  write('word_0004', 4)
  (tmp_path / 'word' / 'imagesTr' / 'word_0004.nii.gz').write_bytes(b'broken')
  assert dedupe.main(find) == 1
  capsys.readouterr()
  prepare.main(command)
  message = capsys.readouterr().err
  assert '1 of 4 scans could not be read when it was made, such as word_0004' in message


@pytest.mark.parametrize('ending', ['.nii', '.nii.gz', '.mha'])
def test_a_scan_of_the_same_size_is_another_and_a_copy_is_not(ending, tmp_path):
  """Voxels of one patient in a file of another's name; and a download that was copied."""
  volumes = np.random.default_rng(0).integers(-1000, 1000, (2, 64, 64, 30)).astype(np.int16)
  volumes[:, :20] = volumes[:, 44:] = volumes[:, :, :20] = volumes[:, :, 44:] = -1000  # air
  images = tmp_path / 'word' / 'imagesTr'
  images.mkdir(parents=True)

  def case(volume):
    path = images / f'a{ending}'
    path.unlink(missing_ok=True)
    if ending == '.mha':
      path.write_bytes(b'ElementDataFile = LOCAL\n' + volume.tobytes('F'))
    else:
      nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return sources.Case('word', 'a', 'train', (), functools.partial(len, path))

  first = case(volumes[0])
  groups = patient_groups.Groups(
    'groups.json', [], {('word', 'a'): patient_groups.state_of(first)}, ()
  )
  groups.check_current([first], '')
  for path in images.iterdir():
    os.utime(path, (0, 0))  # as a copy, which has times of its own
  groups.check_current([first], '')
  size = patient_groups.state_of(first)[0]
  with pytest.raises(patient_groups.GroupsError, match='1 of 1 scans were not there or not the'):
    groups.check_current([case(volumes[1])], '')
  if ending != '.nii.gz':
    assert patient_groups.state_of(first)[0] == size
  # Files of before note the bytes alone.
  dataclasses.replace(groups, scans={('word', 'a'): (size,)}).check_current([case(volumes[0])], '')


def write_scan(folder, name, seed=0, slices=12):
  """A scan of random tissue, at the spacing of the fingerprint's grid."""
  image = np.full((16, 14, slices), -1000, np.int16)
  image[3:13, 3:11] = np.random.default_rng(seed).integers(0, 100, (10, 8, slices))
  for part, array in (('images', image), ('labels', (image > -500).astype(np.uint8))):
    (folder / f'{part}Tr').mkdir(parents=True, exist_ok=True)
    nib.save(
      nib.Nifti1Image(array, np.diag([6.0, 6, 6, 1])), folder / f'{part}Tr' / f'{name}.nii.gz'
    )


def test_a_scan_of_two_slices_costs_no_other(tmp_path):
  for number, slices in enumerate((2, 12, 2)):
    write_scan(tmp_path / 'word', f'word_000{number}', slices=slices)
  output = tmp_path / 'groups.json'
  assert dedupe.main([f'--download=word={tmp_path / "word"}', f'--output={output}']) == 0
  (group,) = json.loads(output.read_text())['groups']
  assert group['members'] == [['word', 'word_0000'], ['word', 'word_0002']]


def test_what_failed_leaves_the_file_of_before_or_none(tmp_path, monkeypatch):
  write_scan(tmp_path / 'word', 'word_0001', slices=6)
  find = [f'--download=word={tmp_path / "word"}', f'--output={tmp_path / "groups.json"}']

  def fail(_):
    raise RuntimeError

  monkeypatch.setattr('input_pipeline.dedupe.fingerprint.find_groups', fail)
  with pytest.raises(RuntimeError):
    dedupe.main(find)
  assert [path.name for path in tmp_path.iterdir()] == ['word']
  (tmp_path / 'groups.json').write_text('before')
  with pytest.raises(RuntimeError):
    dedupe.main(find)
  assert (tmp_path / 'groups.json').read_text() == 'before'


def test_groups_are_replaced_in_one_step(tmp_path):
  file = tmp_path / 'groups.json'
  patient_groups.write(file, [], [], [])
  (tmp_path / 'before').hardlink_to(file)
  patient_groups.write(file, [], [], [('lits', 'a')])
  assert json.loads((tmp_path / 'before').read_text())['unread'] == []
  assert json.loads(file.read_text())['unread'] == [['lits', 'a']]


def test_two_folders_with_the_same_names_are_refused(tmp_path, capsys):
  downloads = []
  for part in ('one', 'two'):
    for kind in ('images', 'labels'):
      (tmp_path / part / f'{kind}Tr').mkdir(parents=True)
    for name in ('images', 'labels'):
      end = '_0000' if name == 'images' else ''
      scan = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
      nib.save(scan, tmp_path / part / f'{name}Tr' / f'a{end}.nii.gz')
    (tmp_path / part / 'dataset.json').write_text('{"labels": {"background": 0, "liver": 1}}')
    downloads.append(f'--download=nifti_folder={tmp_path / part}')
  assert dedupe.main([*downloads, f'--output={tmp_path}/x']) == 1
  message = capsys.readouterr().err
  assert "nifti_folder: two cases are called 'a'" in message
  assert f'{tmp_path}/one/' in message and f'{tmp_path}/two/' in message
  assert '--download=NAME:nifti_folder=FOLDER, and prepare it with --name=NAME' in message


def test_two_folders_with_the_same_names_have_names_of_their_own(tmp_path, capsys):
  """case_000 of one clinic is not that of another; but one patient has been in both."""
  names = sorted((f'case{i}' for i in range(60)), key=files.fraction)[30:35]
  for place, first in (('one', 0), ('two', 7)):  # each draws its first alone for validation
    for seed, name in enumerate(names, first):
      write_scan(tmp_path / place, name, seed)
    text = '{"labels": {"background": 0, "liver": 1}}'
    (tmp_path / place / 'dataset.json').write_text(text)
  write_scan(tmp_path / 'two', names[3], 0)  # as the first of `one`
  groups = tmp_path / 'groups.json'
  find = [f'--download={place}:nifti_folder={tmp_path / place}' for place in ('one', 'two')]
  assert dedupe.main([*find, f'--output={groups}']) == 0
  (group,) = json.loads(groups.read_text())['groups']
  assert group['members'] == [['one', names[0]], ['two', names[3]]]

  def held_out(place, *more):
    words = '--source=nifti_folder', f'--manual_dir={tmp_path / place}', f'--name={place}'
    where = f'--data_dir={tmp_path / "data"}', '--spacing=6,6,6', '--brick=8'
    assert prepare.main([*words, *where, *more]) == 0
    return {case.name for case in bricks.held_out_cases(tmp_path / 'data', place)}

  assert held_out('one') == {names[0]}
  for _ in range(2):
    assert held_out('two', f'--groups={groups}') == {names[0], names[3]}
  patients = {case: patient for _, case, patient in bricks.read_settings(
    tmp_path / 'data', 'two')['patients']}  # fmt: skip
  assert patients == {names[3]: f'one/{names[0]}'}
  write_scan(tmp_path / 'two', names[4], 30)
  words = ['--source=nifti_folder', f'--manual_dir={tmp_path / "two"}', '--name=two']
  assert prepare.main([*words, f'--data_dir={tmp_path / "data"}', f'--groups={groups}',
                       '--spacing=6,6,6', '--brick=8']) == 1  # fmt: skip
  assert f'again with --download=two:nifti_folder={tmp_path / "two"}' in capsys.readouterr().err


def test_a_name_that_another_source_has_is_not_taken_for_that_one(tmp_path):
  for seed, name in enumerate('ab'):
    write_scan(tmp_path / 'own', name, seed)
  (tmp_path / 'own/dataset.json').write_text('{"labels": {"background": 0, "liver": 1}}')
  groups = tmp_path / 'groups.json'
  find = [f'--download=nifti_folder={tmp_path / "own"}', f'--output={groups}']
  assert dedupe.main(find) == 0
  content = json.loads(groups.read_text())
  content['scans'].append(['lits', 'volume-1', 1, ''])  # compared as well
  groups.write_text(json.dumps(content))
  words = ['--source=nifti_folder', f'--manual_dir={tmp_path / "own"}', '--name=lits']
  where = [f'--data_dir={tmp_path / "data"}', '--spacing=6,6,6', '--brick=8']
  assert prepare.main([*words, *where, f'--groups={groups}']) == 0


def test_wrong_downloads_are_named(tmp_path, capsys):
  with pytest.raises(SystemExit):
    dedupe.main(['--download=nothing', f'--output={tmp_path}/x'])
  assert 'SOURCE=FOLDER' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    dedupe.main([f'--download=word:nifti_folder={tmp_path}', f'--output={tmp_path}/x'])
  assert 'word is the name of a source; choose another' in capsys.readouterr().err
  assert dedupe.main([f'--download=lits={tmp_path}', f'--output={tmp_path}/x']) == 1
  assert 'no scan of lits' in capsys.readouterr().err


def test_what_is_held_out_stays_so_when_a_copy_of_it_comes(tmp_path, capsys):
  """Drawn when the cohort was small, and drawn for training from today's."""
  names = sorted((f'case{i}' for i in range(60)), key=files.fraction)
  low, high = names[:2], names[30:35]  # a cohort of `high` alone holds its first out
  folder, data = tmp_path / 'mine', tmp_path / 'data'
  for seed, name in enumerate(high):
    write_scan(folder, name, seed)
  (folder / 'dataset.json').write_text('{"labels": {"background": 0, "liver": 1}}')
  find = [('nifti_folder', str(folder))]
  groups = str(tmp_path / 'groups.json')

  def held_out(name, manual_dir, groups=None):
    capsys.readouterr()
    prepare.prepare(
      name, data, manual_dir=str(manual_dir), spacing=(6, 6, 6), brick=8, groups=groups
    )
    return {case.name for case in bricks.held_out_cases(data, name)}

  assert held_out('nifti_folder', folder) == {high[0]}
  for seed, name in enumerate(low):
    write_scan(folder, name, 10 + seed)
  write_scan(folder, names[50], 0)  # as the one that is held out
  dedupe.write_groups(find, pathlib.Path(groups))
  (group,) = json.loads(pathlib.Path(groups).read_text())['groups']
  assert group['split'] == 'train'
  expected = {high[0], names[50], *low}
  note = 'groups that are held out more than when they were found: nifti_folder/'
  for _ in range(2):
    assert held_out('nifti_folder', folder, groups) == expected
    assert f'{note}{high[0]} (validation, not train)' in capsys.readouterr().err
  # Another copy of it in another source, which knows nothing of the draw.
  write_scan(tmp_path / 'word', 'word_0001', 0)
  write_scan(tmp_path / 'word', 'word_0002', 20)
  dedupe.write_groups([*find, ('word', str(tmp_path / 'word'))], pathlib.Path(groups))
  assert held_out('word', tmp_path / 'word', groups) == {'word_0001'}


def test_a_draw_for_another_folder_s_scans_of_the_same_names_holds_no_group_out(tmp_path, capsys):
  """case_000 of one clinic is not that of another."""
  names = sorted((f'case{i}' for i in range(60)), key=files.fraction)
  high, data = names[30:35], tmp_path / 'data'
  for place, count in (('one', 5), ('two', 4)):  # `two` alone holds its first out
    for seed, name in enumerate(high[:count] if place == 'two' else [names[0], *high]):
      write_scan(tmp_path / place, name, seed + 20 * (place == 'two'))
    text = '{"labels": {"background": 0, "liver": 1}}'
    (tmp_path / place / 'dataset.json').write_text(text)
  write_scan(tmp_path / 'one', names[50], 1)  # as high[0], which `two` draws for validation
  groups = str(tmp_path / 'groups.json')
  dedupe.write_groups([('nifti_folder', str(tmp_path / 'one'))], pathlib.Path(groups))

  def held_out(place, name, **more):
    prepare.prepare(
      'nifti_folder', data, manual_dir=str(tmp_path / place), name=name, brick=8,
      **{'spacing': (6, 6, 6), **more},
    )  # fmt: skip
    return {case.name for case in bricks.held_out_cases(data, name)}

  assert held_out('two', 'two') == {high[0]}
  alone = held_out('one', 'one', groups=groups)
  assert high[0] not in alone and names[50] not in alone
  assert 'held out more' not in capsys.readouterr().err


def test_what_moves_with_its_group_is_told():
  def case(name, split, drawn=True):
    return sources.Case('s', name, split, (), print, drawn=drawn)

  cases = [case('a', 'train'), case('b', 'train'), case('c', 'train'), case('d', 'test', False)]
  groups = [
    {'split': 'validation', 'members': [['s', 'a'], ['other', 'a']]},
    {'split': 'train', 'members': [['s', 'b'], ['other', 'b']]},
    {'split': 'train', 'members': [['s', 'c'], ['s', 'd']]},
  ]
  drawn = {('s', 'a'): 'train', ('other', 'b'): 'validation'}
  together, (kept, moved) = patient_groups.keep_together(cases, groups, drawn)
  assert [one.split for one in together] == ['validation', 'validation', 'test', 'test']
  assert kept == (
    'groups that are held out more than when they were found: other/b (validation, not train), '
    's/d (test, not train)'
  )
  assert 'split than that of their group: s/a (train, now validation); models' in moved


@pytest.mark.parametrize(
  ('split', 'members', 'told'),
  [
    ('training', [], 'ValueError'),
    ('train', ['p0', 'p1'], "member 'p0', expected \\[source, case\\]"),
    ('train', [['mine', 3]], "member \\['mine', 3\\]"),
    ('train', 3, 'TypeError'),
  ],
)
def test_a_file_of_something_else_is_none(split, members, told, tmp_path):
  """Names alone, as written by hand, would be of no case."""
  path = tmp_path / 'groups.json'
  path.write_text(json.dumps({'groups': [{'split': split, 'members': members}]}))
  with pytest.raises(patient_groups.GroupsError, match=f'not a file of mome dedupe .*{told}'):
    patient_groups.read(str(path))
