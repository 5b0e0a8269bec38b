"""Folds: every case is held out once, patients stay together, both forms of a case are there."""

import json
import re
import shlex
import shutil

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks, prepare
from input_pipeline.errors import UserError
from input_pipeline.patients import folds

AFFINE = np.diag([4.0, 4, 4, 1])
NAMES = [f'p{number}' for number in range(12)]
INDEX = {'labels': {'background': 0, 'liver': 1}, 'splits': {'validation': NAMES[:3]}}


def write_case(folder, name, seed, part='Tr'):
  """A liver of `seed` + 1 voxels along an axis, in noise."""
  image = np.random.default_rng(seed).integers(-100, 200, (8, 8, 8)).astype(np.int16)
  label = np.zeros((8, 8, 8), np.uint8)
  label[1:7, 2:6, 1 : 2 + seed % 6] = 1
  for kind, array in (('images', image), ('labels', label)):
    (folder / f'{kind}{part}').mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), folder / f'{kind}{part}/{name}.nii.gz')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mine')
  for seed, name in enumerate(NAMES):
    write_case(folder, name, seed)
  write_case(folder, 'twin', 5)  # the scan of p5 under another name
  write_case(folder, 't', 50, 'Ts')
  (folder / 'dataset.json').write_text(json.dumps(INDEX))
  return folder


def prepared(folder, data, **options):
  return prepare.prepare(
    'nifti_folder', data, manual_dir=str(folder), spacing=(4, 4, 4), brick=8, **options
  )


@pytest.fixture(scope='module')
def data(folder, tmp_path_factory):
  data = tmp_path_factory.mktemp('data')
  assert not prepared(folder, data, folds=True)['skipped']
  return data


def trained(data, held_out=None):
  return {case.name for case in bricks.open_bricks(data, 'nifti_folder', None, held_out).cases}


def scored(data, held_out=None):
  """Name -> split, of what the scans say and of what is listed without reading them."""
  cases = bricks.held_out_cases(data, 'nifti_folder', held_out)
  scans = list(bricks.open_volumes(data, 'nifti_folder', None, held_out))
  assert [(case.name, case.split) for case in cases] == [(scan.name, scan.split) for scan in scans]
  return {scan.name: scan.split for scan in scans}


def test_every_case_is_held_out_once_and_patients_stay_together(data):
  held = [folds.held_out(data, ['nifti_folder'], fold, 4) for fold in range(4)]
  names = [name for part in held for _, name in part]
  assert sorted(names) == sorted([*NAMES, 'twin'])
  together = [{name for _, name in part} & {'p5', 'twin'} for part in held]
  assert sorted(map(len, together)) == [0, 0, 0, 2]
  for part in held:
    out = {name for _, name in part}
    assert trained(data, part) == {*NAMES, 'twin'} - out
    assert scored(data, part) == dict.fromkeys(out, 'validation') | {'t': 'test'}


def test_without_a_fold_nothing_changes(data, folder, tmp_path):
  prepared(folder, tmp_path)
  assert trained(data) == trained(tmp_path) == {*NAMES[3:], 'twin'}
  assert scored(data) == scored(tmp_path) == dict.fromkeys(NAMES[:3], 'validation') | {'t': 'test'}
  stores = [bricks.open_bricks(place, 'nifti_folder') for place in (data, tmp_path)]
  for store in stores:
    voxels = store.class_voxels(['liver'])[:, 0]
    by_name = {store.cases[c].name: int(n) for c, n in zip(store.case, voxels, strict=True)}
    assert by_name == {
      name: 6 * 4 * (1 + int(name.removeprefix('p').replace('twin', '5')) % 6) for name in by_name
    }


def test_a_source_gets_its_folds_later_and_keeps_them(folder, tmp_path):
  prepared(folder, tmp_path)
  with pytest.raises(UserError, match='prepared without folds; run .* --folds, which') as caught:
    folds.held_out(tmp_path, ['nifti_folder'], 0, 5)
  # The command of the message is the one to type.
  words = re.search('run (.*--folds)', str(caught.value))[1]
  assert words.startswith('python -m input_pipeline.prepare --source=nifti_folder --manual_dir=')
  assert prepare.main(shlex.split(words)[3:]) == 0
  first = folds.held_out(tmp_path, ['nifti_folder'], 0, 3)
  report = prepared(folder, tmp_path)  # the command without the option
  assert report['changes']['kept'] == 2 * 13 + 1
  assert folds.held_out(tmp_path, ['nifti_folder'], 0, 3) == first


def test_folds_stay_when_cases_come(data, folder, tmp_path_factory):
  more = tmp_path_factory.mktemp('more')
  for seed, name in enumerate([*NAMES, 'new']):
    write_case(more, name, seed)
  write_case(more, 'twin', 5)
  (more / 'dataset.json').write_text(json.dumps(INDEX))
  other = tmp_path_factory.mktemp('other')
  prepared(more, other, folds=True)
  for fold in range(4):
    before, after = (folds.held_out(p, ['nifti_folder'], fold, 4) for p in (data, other))
    assert len(before ^ (after - {('nifti_folder', 'new')})) <= 2  # one went, and one came


def test_a_scan_that_fails_is_told_once(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'scans')
  scan = tmp_path / 'scans/imagesTr/p4.nii.gz'
  scan.write_bytes(scan.read_bytes()[:100])
  narrow = nib.load(tmp_path / 'scans/imagesTr/p5.nii.gz')
  nib.save(nib.Nifti1Image(np.minimum(narrow.get_fdata(), 90), AFFINE), narrow.get_filename())
  report = prepared(tmp_path / 'scans', tmp_path / 'data', folds=True)
  assert [name for name, _ in report['skipped']] == ['p4']
  told = [name for name, message in report['warnings'] if 'do not look like HU' in message]
  assert 'p5' in told and len(told) == len(set(told))


@pytest.mark.parametrize(
  ('fold', 'number', 'message'),
  [
    (5, 5, 'data.fold is 5 of 5'),
    (0, 1, 'data.fold is 0 of 1'),
    (-2, 5, 'data.fold is -2 of 5'),
    (0, 13, 'data.folds is 13, and nifti_folder have 12 patients'),
  ],
)
def test_folds_that_cannot_be(data, fold, number, message):
  with pytest.raises(UserError, match=message):
    folds.held_out(data, ['nifti_folder'], fold, number)
