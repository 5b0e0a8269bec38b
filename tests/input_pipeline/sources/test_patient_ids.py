"""Several scans of one patient: declared or told by DICOM, they are in one split and one fold."""

import collections
import json
import pathlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
import structure_sets

from input_pipeline import bricks, dedupe, prepare, sources
from input_pipeline.errors import UserError
from input_pipeline.patients import folds
from input_pipeline.sources import files, patient_ids, splits

PATH = pathlib.Path('dataset.json')
PHASES = {f'p{n:02d}_{phase}': f'p{n:02d}' for n in range(20) for phase in ('arterial', 'venous')}


def declare(folder, patients=None, **fields):
  fields |= {} if patients is None else {'patients': patients}
  index = {'labels': {'background': 0, 'liver': 1}, **fields}
  (folder / 'dataset.json').write_text(json.dumps(index))


def write(folder, names, part='Tr'):
  for kind in ('images', 'labels'):
    (folder / f'{kind}{part}').mkdir(parents=True, exist_ok=True)
  for name in names:
    image = np.random.default_rng(list(name.encode())).integers(-100, 200, (8, 8, 8))
    label = np.ones((8, 8, 8), np.uint8)
    for kind, array in (('images', image.astype(np.int16)), ('labels', label)):
      scan = nib.Nifti1Image(array, np.diag([4.0, 4, 4, 1]))
      nib.save(scan, folder / f'{kind}{part}' / f'{name}.nii.gz')


def listed(folder, source='nifti_folder'):
  cases, notes = sources.get_source(source).listed(str(folder))
  return {case.name: case for case in cases}, notes


def prepared(folder, data, **options):
  return prepare.prepare(
    'nifti_folder', data, manual_dir=str(folder), name='mine', spacing=(4, 4, 4), brick=8, **options
  )


def splits_of(cases, patients):
  """Patient -> the splits that its scans are in."""
  held = collections.defaultdict(set)
  for name, case in cases.items():
    held[patients[name]].add(case.split)
  return held


def test_declared_patients_are_drawn_and_not_their_scans(tmp_path):
  write(tmp_path, PHASES)
  declare(tmp_path, {})
  cases, _ = listed(tmp_path)
  assert any(len(held) > 1 for held in splits_of(cases, PHASES).values())  # as cases are drawn
  declare(tmp_path, PHASES)
  cases, notes = listed(tmp_path)
  held = splits_of(cases, PHASES)
  assert all(len(of_patient) == 1 for of_patient in held.values())
  drawn = {patient for patient, (split,) in held.items() if split == 'validation'}
  assert drawn == files.hold_out(set(PHASES.values()), 0.2) and drawn
  assert {name: case.patient for name, case in cases.items()} == PHASES and not notes


def test_patients_are_in_one_fold_and_known_where_they_are_prepared(tmp_path):
  names = [name for name in PHASES if name < 'p06']
  write(tmp_path / 'scans', [*names, 'alone'])
  declare(tmp_path / 'scans', {name: PHASES[name] for name in names})
  prepared(tmp_path / 'scans', tmp_path / 'data', folds=True)
  known = bricks.read_patients(tmp_path / 'data', 'mine')
  assert known == {('mine', name): f'mine/{PHASES[name]}' for name in names}
  held = [folds.held_out(tmp_path / 'data', ['mine'], fold, 3) for fold in range(3)]
  assert sorted(name for fold in held for _, name in fold) == sorted([*names, 'alone'])
  for fold in held:
    who = {PHASES.get(name, name) for _, name in fold}
    assert {name for _, name in fold} == {n for n in [*names, 'alone'] if PHASES.get(n, n) in who}


def test_patients_that_are_declared_later_are_drawn_anew_where_they_were_divided(tmp_path):
  write(tmp_path / 'scans', PHASES)
  declare(tmp_path / 'scans', {})
  prepared(tmp_path / 'scans', tmp_path / 'data')
  before = splits_of(listed(tmp_path / 'scans')[0], PHASES)
  divided = {patient for patient, held in before.items() if len(held) > 1}
  declare(tmp_path / 'scans', PHASES)
  report = prepared(tmp_path / 'scans', tmp_path / 'data')
  after = {}
  for name, split in report['drawn'].items():
    assert after.setdefault(PHASES[name], split) == split
  fresh = files.hold_out(set(PHASES.values()), 0.2)
  assert divided
  for patient, split in after.items():
    if patient in divided:
      assert split == ('validation' if patient in fresh else 'train')
    else:
      assert {split} == before[patient]


def test_a_new_scan_goes_to_the_split_of_its_patient():
  def case(name, split, patient):
    return sources.Case('s', name, split, (), print, drawn=True, patient=patient)

  cases = [case('a1', 'train', 'a'), case('a2', 'train', 'a'), case('b', 'train', '')]
  kept = splits.keep(cases, {'a1': 'validation', 'b': 'train'})
  assert [one.split for one in kept] == ['validation', 'validation', 'train']
  # A new patient is held out whole where nobody is.
  kept = splits.keep(cases, {'b': 'train'})
  assert [one.split for one in kept] == ['validation', 'validation', 'train']


@pytest.mark.parametrize(
  ('patients', 'message'),
  [
    (['p00'], r'"patients" must map cases to patients, as \{"p00_arterial": "p00"\}'),
    ({'p0': 'x', 'p1': 'y'}, "patients names the case 'p0', which is not there; patients names"),
    ({'a': 7}, "patients: 'a' is of 7; expected a text"),
    ({'a': ' '}, "patients: 'a' is of ' '; expected a text"),
    ({'a': 'x', 't': 'x'}, r"'x' is in train \(a\) and test \(t\); correct \"splits\", move scans"),
    ({'t': 'a'}, r"'a' is in train \(a\) and test \(t\)"),
  ],
)
def test_contradictions_are_told(patients, message, tmp_path):
  write(tmp_path, ['a', 'b'])
  write(tmp_path, ['t'], 'Ts')
  declare(tmp_path, patients)
  with pytest.raises(UserError, match=f'dataset.json: .*{message}'):
    listed(tmp_path)


@pytest.mark.parametrize(
  'names',
  [
    PHASES,
    [f'patient{n:03d}_{visit}' for n in range(9) for visit in (1, 2)],
    ['HN1_20200101', 'HN1_20210101', 'HN2_20200101', 'HN2_20210101', 'HN3_20200101'],
  ],
)
def test_names_of_several_scans_of_patients_are_noted(names, recwarn):
  patient_ids.tell({}, PATH, names)
  [note] = recwarn
  one, other = sorted(names)[:2]
  stem = one.rpartition('_')[0]
  assert f'such as {one} and {other}' in str(note.message)
  assert f'"patients": {{"{one}": "{stem}", "{other}": "{stem}", ...}}' in str(note.message)
  patient_ids.tell({'patients': {}}, PATH, names)
  assert len(recwarn) == 1


@pytest.mark.parametrize(
  'pattern',
  ['case_{:05d}', 'LUNG1-{:03d}', 's{:04d}', '1-{:02d}', 'TCGA-02-{:04d}', '3Dircadb1.{}', '{}'],
)
def test_usual_names_are_not_noted(pattern, recwarn):
  patient_ids.tell({}, PATH, [pattern.format(n) for n in range(50)])
  many = [f'{task}_{n:03d}' for task in ('liver', 'site1', 'site2', 'MSD03') for n in range(50)]
  patient_ids.tell({}, PATH, many)
  patient_ids.tell({}, PATH, ['p00_arterial', 'p00_venous', 'p01', 'p02'])
  assert not recwarn.list


def dicom_patient(folder, number, patient_id):
  structure_sets.series(folder, number)
  contour = [structure_sets.box((11, 12), (9, 11), k) for k in range(2, 8)]
  structure_sets.structures(folder / 'rs.dcm', {'SpinalCord': contour}, number)
  for path in folder.glob('ct*.dcm'):
    ds = pydicom.dcmread(path)
    ds.PatientID = patient_id
    ds.save_as(path)


def test_folders_of_one_patient_id_are_of_one_patient(tmp_path):
  for number, (name, patient_id) in enumerate({'b': '7', 'a': '7 ', 'c': '', 'd': ''}.items()):
    dicom_patient(tmp_path / name, number, patient_id)
  cases, [note] = listed(tmp_path, 'rtstruct_folder')
  assert [cases[name].patient for name in 'abcd'] == ['a', 'a', '', '']
  assert cases['a'].split == cases['b'].split
  assert note.endswith('of one patient, by PatientID, and in one split: a and b')
  (tmp_path / 'dataset.json').write_text(json.dumps({'patients': {'c': 'x', 'b': 'x'}}))
  cases, notes = listed(tmp_path, 'rtstruct_folder')
  assert [cases[name].patient for name in 'abcd'] == ['', 'x', 'x', '']
  assert not notes


def test_a_folder_of_several_patients_is_not_taken_for_one(tmp_path):
  for number, (name, patient_id) in enumerate({'LUNG1-001': '7', 'LUNG1-002': '8'}.items()):
    dicom_patient(tmp_path / 'NSCLC-Radiomics' / name, number, patient_id)
  cases, notes = listed(tmp_path, 'rtstruct_folder')
  with pytest.raises(
    sources.SourceError, match='scans of 2 patients; give the folder in which each of them'
  ):
    cases['NSCLC-Radiomics'].load()
  assert not notes
  cases, _ = listed(tmp_path / 'NSCLC-Radiomics', 'rtstruct_folder')
  assert [case.supervised for case in cases.values()] == [('spinal cord',)] * 2


def test_a_structure_set_that_is_asked_for_may_lie_beside_one_of_another_id(tmp_path):
  """As where each study is anonymised by itself: the second would be refused without the name."""
  for number, name in enumerate(('plan', 'replan')):
    dicom_patient(tmp_path / 'p1' / name, number, f'of {name}')
  (tmp_path / 'dataset.json').write_text(json.dumps({'structure_set': 'replan/*'}))
  cases, [note] = listed(tmp_path, 'rtstruct_folder')
  assert 'takes replan/rs.dcm' in note
  assert cases['p1'].supervised == ('spinal cord',)
  cases['p1'].load()


def test_a_scan_that_could_not_be_read_moves_no_other_of_its_patient(tmp_path):
  """Alone, p08 and p11 are drawn for validation and p09 is not; p08 and p09 are of one patient."""
  for number, (name, patient_id) in enumerate({'p08': '7', 'p09': '7', 'p11': '8'}.items()):
    dicom_patient(tmp_path / 'in' / name, number, patient_id)
  (tmp_path / 'in' / 'p08').rename(tmp_path / 'p08')
  (tmp_path / 'in' / 'p08').mkdir()
  options = {'manual_dir': str(tmp_path / 'in'), 'spacing': (8, 8, 6), 'brick': 16}
  report = prepare.prepare('rtstruct_folder', tmp_path / 'data', **options)
  assert report['drawn'] == {'p09': 'train', 'p11': 'validation'}
  (tmp_path / 'p08').replace(tmp_path / 'in' / 'p08')
  report = prepare.prepare('rtstruct_folder', tmp_path / 'data', **options)
  assert report['drawn'] == {'p08': 'train', 'p09': 'train', 'p11': 'validation'}


def test_one_patient_id_in_all_folders_says_nothing(tmp_path):
  for number, name in enumerate('ab'):
    dicom_patient(tmp_path / name, number, 'ANONYMOUS')
  cases, [note] = listed(tmp_path, 'rtstruct_folder')
  assert {case.patient for case in cases.values()} == {''}
  assert {case.split for case in cases.values()} == {'train', 'validation'}
  assert 'all folders have one PatientID, which therefore does not count' in note


def test_folders_that_fail_neither_hide_a_patient_nor_make_one_of_all(tmp_path):
  for number, name in enumerate('abcd'):
    dicom_patient(tmp_path / name, number, 'ANONYMOUS')
  (tmp_path / 'e').mkdir()
  (tmp_path / 'd' / 'rs.dcm').unlink()
  cases, notes = listed(tmp_path, 'rtstruct_folder')
  assert {case.patient for case in cases.values()} == {''}
  assert any('all folders have one PatientID' in note for note in notes)
  dicom_patient(tmp_path / 'c', 2, '8')
  cases, notes = listed(tmp_path, 'rtstruct_folder')
  assert [cases[name].patient for name in 'abcde'] == ['a', 'a', '', 'a', '']
  assert len({cases[name].split for name in 'abd'}) == 1


def test_groups_hold_the_declared_patients(tmp_path):
  """Of two downloads that both know a patient 'p', who are two; one scan cannot be read."""
  for name in ('one', 'two'):
    write(tmp_path / name, [f'{name}_{part}' for part in 'abc'])
    declare(tmp_path / name, {})
  (tmp_path / 'one/imagesTr/one_b.nii.gz').write_bytes(b'broken')
  find = [f'--download=nifti_folder={tmp_path / name}' for name in ('one', 'two')]
  find.append(f'--output={tmp_path / "groups.json"}')
  assert dedupe.main(find) == 1
  assert json.loads((tmp_path / 'groups.json').read_text())['groups'] == []
  for name in ('one', 'two'):
    declare(tmp_path / name, {f'{name}_a': 'p', f'{name}_b': 'p'})
  groups = {'groups': str(tmp_path / 'groups.json')}
  with pytest.raises(UserError, match='one_a and one_b are of one patient, which was not known'):
    prepared(tmp_path / 'one', tmp_path / 'data', **groups)
  assert dedupe.main(find) == 1
  held = json.loads((tmp_path / 'groups.json').read_text())['groups']
  assert [group['members'] for group in held] == [
    [['nifti_folder', f'{name}_a'], ['nifti_folder', f'{name}_b']] for name in ('one', 'two')
  ]
  prepared(tmp_path / 'two', tmp_path / 'data', **groups)
  known = bricks.read_patients(tmp_path / 'data', 'mine')
  assert known == dict.fromkeys([('mine', 'two_a'), ('mine', 'two_b')], 'nifti_folder/two_a')
