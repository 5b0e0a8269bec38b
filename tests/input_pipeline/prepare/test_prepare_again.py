"""`prepare` given again: what is prepared follows the folder, case by case."""

import json
import os
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
from etils import epath

from input_pipeline import bricks, prepare
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.bricks import shards, staging, writer
from input_pipeline.prepare import preparation

AFFINE = np.diag([4.0, 4, 4, 1])
LABELS = {'background': 0, 'liver': 1, 'spleen': 2}
SPLITS = {'validation': ['v']}


def write_case(folder, name, seed, part='Tr'):
  rng = np.random.default_rng(seed)
  image = rng.integers(-100, 200, (8, 8, 8)).astype(np.int16)
  label = np.zeros((8, 8, 8), np.uint8)
  label[1:4, 2:6, 2:6], label[5:7, 2:6, 2:6] = 1, 2
  for kind, array in (('images', image), ('labels', label)):
    (folder / f'{kind}{part}').mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), folder / f'{kind}{part}' / f'{name}.nii.gz')
  return image


def write_index(folder, **fields):
  (folder / 'dataset.json').write_text(json.dumps({'labels': LABELS, 'splits': SPLITS} | fields))


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'mine'
  for seed, name in enumerate('abv'):
    write_case(folder, name, seed)
  write_index(folder)
  return folder


@pytest.fixture
def run(tmp_path, folder):
  """run(manual_dir, spacing=, folds=, overwrite=) -> the changes it reports."""

  def call(manual_dir=folder, **options):
    options = {'spacing': (4, 4, 4), 'brick': 8} | options
    report = prepare.prepare(
      'nifti_folder', tmp_path / 'data', manual_dir=str(manual_dir), **options
    )
    assert not report['skipped']
    return {what: number for what, number in report['changes'].items() if number}

  return call


def stored(tmp_path):
  """Name -> sum of HU, codes, and split of what is prepared; one brick a case."""
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  cases = {}
  for record, number in enumerate(store.case):
    image, codes = store.read(record)
    cases[store.cases[number].name] = (int(image.sum()), set(np.unique(codes).tolist()), 'train')
  for volume in bricks.open_volumes(tmp_path / 'data', 'nifti_folder'):
    codes = set(np.unique(volume.codes).tolist())
    cases[volume.name] = (int(volume.image.sum()), codes, volume.split)
  return cases


def code(name):
  return TEMPLATE.get(name).index


def test_added_replaced_removed_and_kept(tmp_path, folder, run):
  assert run() == {'added': 3}
  before = stored(tmp_path)
  shards = tmp_path / 'data' / 'nifti_folder' / 'bricks' / bricks.VERSION / 'index.npz'
  written = shards.stat().st_mtime_ns
  assert run() == {'kept': 3}
  assert shards.stat().st_mtime_ns == written

  added = write_case(folder, 'c', 7)
  assert run() == {'added': 1, 'kept': 3}
  assert stored(tmp_path) == before | {
    'c': (int(added.sum()), {0, code('liver'), code('spleen')}, 'train')
  }

  replaced = write_case(folder, 'a', 8)
  assert run() == {'replaced': 1, 'kept': 3}
  assert stored(tmp_path)['a'][0] == replaced.sum() != before['a'][0]

  for kind in ('images', 'labels'):
    (folder / f'{kind}Tr' / 'b.nii.gz').unlink()
  assert run() == {'removed': 1, 'kept': 3}
  assert sorted(stored(tmp_path)) == ['a', 'c', 'v']


@pytest.mark.skipif(sys.platform == 'darwin', reason='its disks take UTF-8 alone')
def test_a_name_in_another_encoding_costs_nothing(tmp_path, folder, run):
  for part in ('imagesTr', 'labelsTr'):
    os.rename(folder / part / 'a.nii.gz', os.fsencode(folder / part) + b'/M\xfcller.nii.gz')
  write_index(folder, splits={})
  assert run() == {'added': 3}
  assert run() == {'kept': 3}
  assert {'b', 'v', 'M\N{REPLACEMENT CHARACTER}ller'} == set(stored(tmp_path))


def test_label_meanings_are_compared(tmp_path, folder, run):
  run()
  write_index(folder, labels={'background': 0, 'spleen': 1, 'liver': 2})
  # The classes, files and names are the same: only what the values mean differs.
  assert run() == {'replaced': 3}
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  liver, spleen = store.class_voxels(['liver', 'spleen']).sum(0) / len(store.cases)
  assert (liver, spleen) == (2 * 4 * 4, 3 * 4 * 4)


def test_supervision_splits_and_new_classes_are_compared(tmp_path, folder, run):
  run()
  write_index(folder, supervised={'a': ['liver']})
  assert run() == {'replaced': 1, 'kept': 2}
  assert stored(tmp_path)['a'][1] == {0, code('liver')}
  write_index(folder, splits={'validation': ['a']})
  assert run() == {'replaced': 2, 'kept': 1}
  assert {name: split for name, (_, _, split) in stored(tmp_path).items()} == {
    'a': 'validation', 'b': 'train', 'v': 'train',
  }  # fmt: skip
  labels = {**LABELS, 'metastasis': 2}
  del labels['spleen']
  write_index(folder, labels=labels, new_classes=[{'name': 'metastasis'}])
  assert run() == {'replaced': 3}
  template = bricks.read_template(tmp_path / 'data', ['nifti_folder'])
  assert template.get('metastasis').index in stored(tmp_path)['b'][1]


def test_another_folder_is_another_cohort(tmp_path, folder, run):
  """The same names and meanings, other scans."""
  run()
  other = tmp_path / 'other'
  image = write_case(other, 'a', 20)
  write_case(other, 'v', 21)
  write_index(other)
  assert run(manual_dir=other) == {'replaced': 2, 'removed': 1}
  assert stored(tmp_path)['a'][0] == image.sum()


def test_a_folder_called_in_another_way_is_the_same(tmp_path, folder, run, monkeypatch):
  run()
  monkeypatch.chdir(tmp_path)
  assert run(manual_dir='mine') == {'kept': 3}


def test_cases_of_a_killed_run_are_taken_over_only_if_they_are_current(
  tmp_path, folder, run, monkeypatch
):
  gather = writer.gather

  def killed(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(writer, 'gather', killed)
  with pytest.raises(KeyboardInterrupt):
    run()
  assert len(list((tmp_path / 'data' / '.nifti_folder.incomplete' / 'cases').glob('*.json'))) == 3
  monkeypatch.setattr(writer, 'gather', gather)
  image = write_case(folder, 'a', 30)
  run()
  assert stored(tmp_path)['a'][0] == image.sum()


def test_the_command_says_what_it_did(tmp_path, folder, capsys):
  command = ['--source=nifti_folder', f'--manual_dir={folder}', f'--data_dir={tmp_path / "data"}']
  command += ['--spacing=4', '--brick=8']
  assert prepare.main(command) == 0
  assert 'skipped; 3 added\n' in capsys.readouterr().out
  write_case(folder, 'c', 7)
  write_case(folder, 'a', 8)
  for kind in ('images', 'labels'):
    (folder / f'{kind}Tr' / 'b.nii.gz').unlink()
  assert prepare.main(command) == 0
  assert 'skipped; 1 added, 1 replaced, 1 removed, 1 kept\n' in capsys.readouterr().out
  assert prepare.main(command) == 0
  assert 'skipped; 3 kept\n' in capsys.readouterr().out
  # Another source under this name is a mistake.
  assert prepare.main(['--source=phantom', '--name=nifti_folder', *command[2:]]) == 1
  message = capsys.readouterr().err
  assert 'source nifti_folder, not phantom' in message and '--name' in message


def test_files_of_others_are_never_replaced(tmp_path, folder, capsys):
  """Such as the download itself, where --data_dir and --name lead to it."""
  files = sorted(folder.rglob('*'))
  command = ['--source=nifti_folder', f'--manual_dir={folder}', f'--data_dir={tmp_path}']
  command += ['--name=mine', '--spacing=4', '--brick=8']
  for options in ([], ['--overwrite']):
    assert prepare.main([*command, *options]) == 1
    assert 'mine: holds dataset.json, which is of no prepared source' in capsys.readouterr().err
  assert sorted(folder.rglob('*')) == files


def test_a_scan_that_was_there_before_and_fails_now_is_not_kept(tmp_path, folder, capsys):
  command = ['--source=nifti_folder', f'--manual_dir={folder}', f'--data_dir={tmp_path / "data"}']
  command += ['--spacing=4', '--brick=8']
  assert prepare.main(command) == 0
  whole = (folder / 'imagesTr' / 'a.nii.gz').read_bytes()
  (folder / 'imagesTr' / 'a.nii.gz').write_bytes(whole[:100])
  assert prepare.main(command) == 1
  out, err = capsys.readouterr()
  assert 'skipped a: ' in err and '1 cases skipped; 1 removed, 2 kept' in out
  assert sorted(stored(tmp_path)) == ['b', 'v']
  (folder / 'imagesTr' / 'a.nii.gz').write_bytes(whole)
  assert prepare.main(command) == 0
  assert sorted(stored(tmp_path)) == ['a', 'b', 'v']


def test_every_case_carries_the_digest_of_its_scan(tmp_path, folder, run):
  """Under another name and in another axis order a scan is the same, with other labels too."""
  image = nib.load(folder / 'imagesTr' / 'a.nii.gz')
  label = nib.load(folder / 'labelsTr' / 'a.nii.gz')
  turned = nib.orientations.axcodes2ornt('PIL')
  nib.save(image.as_reoriented(turned), folder / 'imagesTr' / 'v.nii.gz')
  nib.save(label.as_reoriented(turned), folder / 'labelsTr' / 'v.nii.gz')
  os.remove(folder / 'labelsTr' / 'b.nii.gz')
  shutil.copy(folder / 'labelsTr' / 'a.nii.gz', folder / 'labelsTr' / 'b.nii.gz')
  run()
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  digests = {case.name: case.digest for case in store.cases}
  (record,) = bricks.open_volumes(tmp_path / 'data', 'nifti_folder')
  assert len(digests['a']) == 32
  assert record.digest == digests['a'] != digests['b']


@pytest.mark.parametrize('damage', ['missing', 'cut', 'other'])
def test_a_damaged_shard_is_named_and_no_case_takes_the_records_of_another(
  tmp_path, folder, run, monkeypatch, damage
):
  monkeypatch.setattr(shards, '_SHARD_BYTES', 1)  # each case has one
  run()
  before = stored(tmp_path)
  place = tmp_path / 'data' / 'nifti_folder' / 'bricks' / bricks.VERSION
  first, second = sorted(place.glob('*.array_record-*'))
  if damage == 'missing':
    first.unlink()
  elif damage == 'cut':
    first.write_bytes(first.read_bytes()[:-100])
  else:
    shards.write_records(first, [*shards.read_records(second)] * 2)
  added = write_case(folder, 'c', 7)
  with pytest.raises(bricks.NotPreparedError, match=f'{first.name}: damaged.*--overwrite'):
    run()
  assert run(overwrite=True) == {'added': 1, 'kept': 3}
  assert stored(tmp_path) == before | {
    'c': (int(added.sum()), {0, code('liver'), code('spleen')}, 'train')
  }


def remove_case(folder, name):
  for kind in ('images', 'labels'):
    (folder / f'{kind}Tr' / f'{name}.nii.gz').unlink()


AGAIN = r'index\.npz: prepared again since this run began; give the same command again'


def test_no_brick_is_read_as_that_of_another_patient(tmp_path, folder, run, monkeypatch):
  """A training has opened the index, and a shard only where it read of it."""
  monkeypatch.setattr(shards, '_SHARD_BYTES', 1)  # each case has one
  run()
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  assert [case.name for case in store.cases] == ['a', 'b']
  store.read(0)
  remove_case(folder, 'a')
  write_case(folder, 'c', 7)
  run()  # the second shard is of c now
  with pytest.raises(bricks.NotPreparedError, match=AGAIN):
    store.read(1)
  for look in (store.digest, lambda: store.class_voxels(['liver']), lambda: store.tells_outside):
    with pytest.raises(bricks.NotPreparedError, match=AGAIN):
      look()


def test_what_is_known_of_a_case_counts_for_its_bricks(tmp_path, folder, run):
  """What was labelled is unlabelled now: a run that goes on would train it as background."""
  run()
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  write_index(folder, supervised=['liver'])
  run()
  with pytest.raises(bricks.NotPreparedError, match=AGAIN):
    store.read(0)


def test_a_shard_that_is_gone_is_no_damage_where_it_was_prepared_again(
  tmp_path, folder, run, monkeypatch
):
  monkeypatch.setattr(shards, '_SHARD_BYTES', 1)
  run()
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  write_case(folder, 'c', 7)
  run()  # its shards are those of 3 now, by their names
  with pytest.raises(bricks.NotPreparedError, match=AGAIN):
    store.read(0)
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  shutil.rmtree(tmp_path / 'data' / 'nifti_folder')  # as while a bucket is written
  with pytest.raises(bricks.NotPreparedError, match=AGAIN):
    store.read(0)


def test_bricks_of_another_case_are_damage_where_nothing_was_prepared(
  tmp_path, folder, run, monkeypatch
):
  monkeypatch.setattr(shards, '_SHARD_BYTES', 1)
  run()
  store = bricks.open_bricks(tmp_path / 'data', 'nifti_folder')
  place = tmp_path / 'data' / 'nifti_folder' / 'bricks' / bricks.VERSION
  first, second = sorted(place.glob('*.array_record-*'))
  shutil.copy(second, first)
  with pytest.raises(bricks.NotPreparedError, match=r"damaged.*it holds a brick of .*'b'"):
    store.read(0)


@pytest.mark.parametrize('change', ['another', 'its voxels', 'gone'])
def test_no_scan_is_scored_as_another(tmp_path, folder, run, change):
  run()
  volumes = bricks.open_volumes(tmp_path / 'data', 'nifti_folder')
  if change == 'its voxels':
    write_case(folder, 'v', 9)
  else:
    write_index(folder, splits={'validation': ['a']} if change == 'another' else {'test': ['v']})
  run()
  message = r'cases\.json: prepared again since this run began'
  with pytest.raises(bricks.NotPreparedError, match=message):
    volumes[0]


def test_licence_and_citation_are_compared_and_written_without_the_records(
  tmp_path, folder, run, capsys
):
  place = tmp_path / 'data' / 'nifti_folder'

  def metadata():
    return {
      str(path.relative_to(place)): json.loads(text) if path.suffix == '.json' else text
      for path in place.glob('*/*/[dL]*')
      for text in [path.read_text()]
    }

  def records():
    return {path: path.stat().st_ino for path in place.rglob('*') if path.name[0] not in 'dL'}

  run()
  before, written = metadata(), records()
  said = {
    'licence': 'CC BY 4.0',
    'citation': 'A. Author,\n  caf\N{LATIN SMALL LETTER E WITH ACUTE}',
  }
  write_index(folder, **said)
  capsys.readouterr()
  assert run() == {'kept': 3}
  assert 'has the licence and the citation of now' in capsys.readouterr().out
  assert records() == written
  now = metadata()
  assert now['bricks/1.1.0/LICENSE'] == now['volumes/1.1.0/LICENSE'] == 'CC BY 4.0'
  assert now['volumes/1.1.0/dataset_info.json']['citation'] == said['citation']
  run(overwrite=True)
  assert metadata() == now  # as TFDS writes it
  written = records()
  assert run() == {'kept': 3}
  assert records() == written
  write_index(folder)
  assert run() == {'kept': 3}
  assert metadata() == before
  builder = bricks.import_tfds().builder_from_directory(place / 'bricks' / bricks.VERSION)
  assert builder.info.redistribution_info.license == 'as the folder says'


@pytest.fixture
def meanwhile(monkeypatch):
  """meanwhile(run, ...): another process prepares while the next one lists its cases."""

  def call(run, **options):
    list_cases = preparation._list_cases

    def wait(*args):
      monkeypatch.setattr(preparation, '_list_cases', list_cases)
      run(**options)
      return list_cases(*args)

    monkeypatch.setattr(preparation, '_list_cases', wait)

  return call


def test_what_another_process_prepared_meanwhile_is_not_replaced(tmp_path, run, meanwhile):
  meanwhile(run, spacing=(8, 8, 8))
  with pytest.raises(prepare.PrepareError, match=r'prepared with spacing \[8.0, 8.0, 8.0\], not '):
    run()
  assert bricks.open_bricks(tmp_path / 'data', 'nifti_folder').spacing == (8, 8, 8)
  assert [path.name for path in (tmp_path / 'data').iterdir()] == ['nifti_folder']
  meanwhile(run, spacing=(8, 8, 8))
  assert run(overwrite=True) == {'replaced': 3}
  assert bricks.open_bricks(tmp_path / 'data', 'nifti_folder').spacing == (4, 4, 4)


def test_what_another_process_prepared_meanwhile_is_taken_over(tmp_path, folder, run, meanwhile):
  meanwhile(run, folds=True)
  assert run() == {'kept': 6}
  write_case(folder, 'c', 7)
  meanwhile(lambda: (write_case(folder, 'd', 8), run()))
  assert run() == {'kept': 10}  # each twice
  assert len(bricks.pool_cases(tmp_path / 'data', 'nifti_folder')) == 5


def test_a_kill_while_one_source_takes_the_place_of_another_costs_no_fold_and_no_draw(
  tmp_path, folder, run, monkeypatch
):
  write_index(folder, splits={})
  run(folds=True)
  report = bricks.read_settings(tmp_path / 'data', 'nifti_folder')
  write_case(folder, 'c', 7)
  replace = os.replace

  def killed(source, target):
    if os.fspath(target) == os.fspath(tmp_path / 'data' / 'nifti_folder'):
      raise KeyboardInterrupt
    replace(source, target)

  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    run()
  monkeypatch.setattr(os, 'replace', replace)
  assert [path.name for path in (tmp_path / 'data').iterdir()] == ['.nifti_folder.incomplete']
  with staging.stage_folder(epath.Path(tmp_path / 'data'), 'nifti_folder'):
    assert bricks.read_settings(tmp_path / 'data', 'nifti_folder') == report
  assert run() == {'added': 2, 'kept': 6}
  now = bricks.read_settings(tmp_path / 'data', 'nifti_folder')
  assert report['drawn'].items() < now['drawn'].items()
  assert len(now['assigned']) == 4


def test_a_source_that_was_removed_does_not_come_back(tmp_path, run):
  """Of a run that was killed after its source was in its place, the earlier one may be left."""
  run()
  place = tmp_path / 'data' / '.nifti_folder.incomplete'
  place.mkdir()
  (tmp_path / 'data' / 'nifti_folder').rename(place / 'replaced')
  staging.recover(epath.Path(tmp_path / 'data'), 'nifti_folder')
  assert bricks.read_settings(tmp_path / 'data', 'nifti_folder') is None
  assert run() == {'added': 3}
