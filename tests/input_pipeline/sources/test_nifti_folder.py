"""The user's own scans, from a folder to batches."""

import json
import shutil

import ml_collections
import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks, prepare, sources
from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE
from input_pipeline.batches.sampler import PatchSampler, PipelineError
from input_pipeline.errors import UserError

AFFINE = np.diag([-3.0, 3, 4, 1])  # LAS: array axis 0 runs to the left
INDEX = {
  'channel_names': {'0': 'CT'},
  'labels': {'background': 0, 'Liver': [1, 2], 'metastasis': 2, 'kidney': 3, 'IVC': 4, 'bone': 5},
  'new_classes': [
    {
      'name': 'Metastasis',
      'prompt': 'A CT of a metastasis in the liver',
      'synonyms': ['secondary liver tumor'],
      'parent': 'liver',
    }
  ],
  'ignored': ['bone'],
}


def body():
  """(20, 16, 12) HU and labels: liver with a metastasis, two kidneys, a vein and bone."""
  image = np.full((20, 16, 12), -1000, np.int16)
  image[2:18, 2:14], image[9:11, 3, :] = 40, 400
  label = np.zeros(image.shape, np.uint8)
  label[3:8, 8:12, 6:10], label[5, 9, 7] = 1, 2
  label[4:6, 4:6, 3:6] = label[14:16, 4:6, 3:6] = 3
  label[10, 8, 2:10], label[10, 4, 2:10] = 4, 5
  return image, label


def write(folder, index=INDEX, cases=('a', 'b', 'c'), part='Tr', ending='_0000.nii.gz'):
  image, label = body()
  for kind in ('images', 'labels'):
    (folder / f'{kind}{part}').mkdir(parents=True, exist_ok=True)
  for name in cases:
    nib.save(nib.Nifti1Image(image, AFFINE), folder / f'images{part}' / f'{name}{ending}')
    nib.save(nib.Nifti1Image(label, AFFINE), folder / f'labels{part}' / f'{name}.nii.gz')
  (folder / 'dataset.json').write_text(json.dumps(index))
  return str(folder)


def cases_of(folder):
  return sources.get_source('nifti_folder').cases(str(folder))


def template_of(folder):
  return sources.get_source('nifti_folder').template(str(folder))


def test_regions_pairs_synonyms_and_new_classes(tmp_path):
  cases = cases_of(write(tmp_path))
  template = template_of(tmp_path)
  assert [case.split for case in cases].count('validation') == 1
  names = ('right kidney', 'left kidney', 'liver', 'postcava', 'metastasis')
  assert {case.supervised for case in cases} == {names}
  scan = cases[0].load()
  # Axis 0 of the file runs to the left, that of the scan to the right.
  label = body()[1][::-1]
  expected = np.zeros(label.shape, np.uint8)
  expected[label == 1], expected[label == 2], expected[label == 4] = 6, 39, 9
  expected[4:6, 4:6, 3:6], expected[14:16, 4:6, 3:6] = 3, 2
  np.testing.assert_array_equal(scan.codes, expected)
  liver, metastasis = template.code_table(['liver', 'metastasis'])[scan.codes].sum((0, 1, 2))
  assert (liver, metastasis) == (80, 1)
  assert template.get('metastasis').prompt == 'A CT of a metastasis in the liver'
  assert template.find('secondary LIVER tumor').name == 'metastasis'
  assert len(TEMPLATE) == 38


def test_older_style_plain_names_test_folder_and_splits(tmp_path):
  index = {
    'labels': {'0': 'background', '1': 'liver', '2': 'liver_tumour', '3': 'kidney_right'},
    'ignored': ['x', 'y'],
    'splits': {'validation': ['b']},
  }
  index['labels'] |= {'4': 'x', '5': 'y'}
  write(tmp_path, index, ending='.nii.gz')
  write(tmp_path, index, cases=('t',), part='Ts')
  cases = {case.name: case for case in cases_of(tmp_path)}
  splits = {name: case.split for name, case in cases.items()}
  assert splits == {'a': 'train', 'b': 'validation', 'c': 'train', 't': 'test'}
  assert cases['a'].supervised == ('right kidney', 'liver', 'liver tumor')


def test_values_in_quotes_are_values(tmp_path):
  given = {'background': '0', 'liver': '1', 'kidney': ['3', '4'], 'x': '2', 'y': 5}
  write(tmp_path, {'labels': given, 'ignored': ['x', 'y']})
  case = cases_of(tmp_path)[0]
  assert case.supervised == ('right kidney', 'left kidney', 'liver') and case.load().codes.any()


def test_a_case_may_label_less(tmp_path):
  index = {**INDEX, 'supervised': {'a': ['liver'], 'b': ['kidney', 'metastasis']}}
  cases = {case.name: case for case in cases_of(write(tmp_path, index))}
  # Without metastases, one is plain liver; without the liver, it is itself, and the liver unknown.
  assert cases['a'].supervised == ('liver',)
  assert np.bincount(cases['a'].load().codes.ravel(), minlength=40)[[6, 39]].tolist() == [80, 0]
  assert cases['b'].supervised == ('right kidney', 'left kidney', 'metastasis')
  codes = cases['b'].load().codes
  assert np.bincount(codes.ravel(), minlength=40)[[2, 3, 6, 39]].tolist() == [12, 12, 0, 1]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'labels': {'livr': 1}}, r"'livr' is no class.*did you mean liver\?.*new_classes"),
    ({'labels': {'unicorn': 1}}, r'"new_classes": \[\{"name": "unicorn"\}\], or list it in'),
    ({'labels': {'liver': 300}}, r'value 300; expected 1\.\.255'),
    ({'labels': {'liver': 'x1'}}, r'expected a whole number'),
    ({'labels': {'liver': [1, 2.5]}}, r'value \[1, 2.5\]; expected a whole number'),
    ({'labels': {'liver': [1, 2], 'ignore': 2}}, r"value 2: it is to be ignored, .*\['liver'\]"),
    ({'labels': {'liver': 1, 'spleen': 1}}, r'value 1: .*none contains the other'),
    ({'labels': ['liver']}, r'no "labels"'),
    ({'new_classes': [{'nam': 'x'}]}, r'no name'),
    ({'new_classes': [{'name': 'x', 'color': 'red'}]}, r"unknown fields \['color'\]"),
    ({'new_classes': [{'name': 'x', 'parent': 'livr'}]}, r"parents \['livr'\] are not"),
    ({'new_classes': [{'name': 'x', 'synonyms': 'hepar'}]}, r'expected a list'),
    ({'new_classes': [{'name': 'x', 'synonyms': ['hepar']}]}, r'belongs to both'),
    ({'new_classes': [{'name': 'x', 'index': 6}]}, r"index 6 is taken by 'liver'"),
    ({'splits': {'test': ['z', 'y']}}, r"splits names the case 'z', which has no scan.*case 'y'"),
    ({'supervised': {'A': ['liver']}}, r"supervised names the case 'A', which has no scan"),
    ({'splits': {'validation': ['a'], 'test': ['a']}}, r"'a' is in two splits"),
    ({'splits': {'test': 'ab'}}, "must map test to a list of cases, not to 'ab'"),
    ({'splits': {'test': [['a']]}}, r"must map test to a list of cases, not to \[\['a'\]\]"),
    ({'supervised': {'a': ['spleen']}}, r"supervised of a: 'spleen' has no value"),
    ({'supervised': None}, '"supervised" is null; expected the list of labelled classes, or case'),
    ({'supervised': {'a': None}}, 'supervised of a is None; expected a list of names'),
    ({'supervised': {'a': 'liver'}}, "supervised of a is 'liver'; expected a list of names"),
    ({'ignored': 'spleen'}, '"ignored" is \'spleen\'; expected a list of names'),
  ],
)
def test_a_malformed_index_is_named(change, message, tmp_path):
  write(tmp_path, {**INDEX, **change})
  with pytest.raises(sources.SourceError, match=f'dataset.json: .*{message}'):
    cases_of(tmp_path)


def test_labels_are_spelled_as_anything_else(tmp_path):
  """The names of planning systems, as rtstruct_folder and prompts take them."""
  given = {'SpinalCord': 1, 'Parotid_L': 2, 'Glnd_Parotid_R': 3, 'Kidneys': 4, '5': 'Oesophagus'}
  write(tmp_path, {'labels': {'background': 0, **given}, 'supervised': {}}, cases=('a',))
  [case] = cases_of(tmp_path)
  assert set(case.supervised) == {
    'spinal cord', 'left parotid', 'right parotid', 'right kidney', 'left kidney', 'esophagus',
  }  # fmt: skip


def test_an_organ_with_its_lesion_is_not_the_lesion(tmp_path):
  write(tmp_path, {'labels': {'kidney + tumor': [1, 2], 'kidney tumor': 2}, 'supervised': {}})
  with pytest.raises(sources.SourceError, match=r"label 'kidney \+ tumor' is no class"):
    cases_of(tmp_path)


def test_all_bad_labels_are_named_at_once(tmp_path):
  bad = {'livr': 1, 'unicorn': 2, 'spleen': 300, 'pancreas': 4, 'colon': 4}
  write(tmp_path, {'labels': bad, 'supervised': {}})
  with pytest.raises(sources.SourceError) as caught:
    cases_of(tmp_path)
  message = str(caught.value)
  assert "'livr' is no class of the template; did you mean liver? Otherwise declare" in message
  assert "; label 'unicorn' is no class of the template; declare it" in message
  assert "; label 'spleen' has value 300; expected 1..255" in message
  assert '; value 4: it stands for' in message and '\n' not in message
  write(tmp_path, {'labels': {'liver': 'x', 'spleen': 'y'}})
  with pytest.raises(
    sources.SourceError, match="'liver'; expected a whole number; .*'spleen'; exp"
  ):
    cases_of(tmp_path)
  write(tmp_path, {'labels': {'liver': 1}, 'supervised': {'a': ['spleen', 'livr', 'colon']}})
  with pytest.raises(
    sources.SourceError, match="of a: 'livr' is no .*; 'colon' has no .*; 'spleen' "
  ):
    cases_of(tmp_path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_an_index_as_windows_programs_write_it(encoding, tmp_path):
  write(tmp_path)
  text = json.dumps(INDEX, indent=1).replace('\n', '\r\n')
  (tmp_path / 'dataset.json').write_bytes(text.encode(encoding))
  assert len(cases_of(tmp_path)) == 3


def test_an_ignore_label_is_prepared_as_voxels_without_supervision(tmp_path):
  index = {'labels': {'liver': [1, 2], 'ignore': 5, 'x': [3, 4]}, 'ignored': ['x']}
  index['supervised'] = {'b': ['liver']}
  folder = write(tmp_path / 'mine', index)
  label = body()[1][::-1]
  for case in cases_of(folder):
    assert case.supervised == ('liver',)
    codes = case.load().codes
    np.testing.assert_array_equal(codes == IGNORE_CODE, label == 5)
    np.testing.assert_array_equal(codes == 6, (label == 1) | (label == 2))
  data = tmp_path / 'data'
  command = ['--source=nifti_folder', f'--manual_dir={folder}', f'--data_dir={data}']
  assert prepare.main([*command, '--spacing=3,3,4', '--brick=16']) == 0
  store = bricks.open_bricks(data, 'nifti_folder')
  # Two training cases of 80 voxels; what is ignored is no voxel of any class.
  assert store.class_voxels(store.template.names()).sum() == 160
  sampler = PatchSampler(pipeline_config(patch=(24, 24, 24)), [store], ('liver',))
  shown = sampler.sample(0, 0)['label']
  assert (shown == IGNORE_CODE).sum() == (label == 5).sum() == 8
  (held_out,) = bricks.open_volumes(data, 'nifti_folder')
  assert (held_out.codes == IGNORE_CODE).sum() == 8


def test_an_index_that_is_a_link_to_nothing_or_a_folder_is_named(tmp_path):
  write(tmp_path)
  path = tmp_path / 'dataset.json'
  path.unlink()
  path.symlink_to('gone.json')
  with pytest.raises(
    sources.SourceError, match=r'dataset\.json: a link to gone\.json, which is not'
  ):
    cases_of(tmp_path)
  path.unlink()
  path.mkdir()
  with pytest.raises(sources.SourceError, match=r'dataset\.json: is a folder, where a file is'):
    cases_of(tmp_path)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(sources.SourceError, match='--manual_dir'):
    sources.get_source('nifti_folder').cases(None)
  with pytest.raises(sources.SourceError, match='dataset.json: no such file'):
    cases_of(tmp_path)
  write(tmp_path)
  (tmp_path / 'dataset.json').write_text('{')
  with pytest.raises(UserError, match=r'dataset\.json: not JSON'):
    cases_of(tmp_path)


def fails(folder):
  """Case -> why it cannot be loaded; the sound ones are loaded."""
  problems = {}
  for case in cases_of(folder):
    try:
      case.load()
    except sources.SourceError as error:
      problems[case.name] = str(error).removeprefix(f'{folder}/')
  return problems


def test_a_scan_that_lacks_a_file_costs_only_itself(tmp_path):
  write(tmp_path, cases='abcdefgh')
  images, maps = tmp_path / 'imagesTr', tmp_path / 'labelsTr'
  (maps / 'a.nii.gz').unlink()
  (images / 'b_0000.nii.gz').unlink()
  (images / 'c_0000.nii.gz').rename(images / 'c_0000.NII.GZ')
  (images / 'd_0000.nii.gz').unlink()
  (images / 'd_0000.nii.gz').symlink_to('../annex/gone')
  (maps / 'e.nii.gz').write_bytes(b'')
  shutil.copy(images / 'f_0000.nii.gz', images / 'f_0001.nii.gz')
  shutil.copy(maps / 'g.nii.gz', maps / 'g.NII.GZ')
  (images / 'h_0000.nii.gz').rename(images / 'h_0000.mgz')
  assert fails(tmp_path) == {
    'a': 'imagesTr/a_0000.nii.gz: no labelsTr/a.nii.gz; label the scan, or move it out of imagesTr',
    'b': 'labelsTr/b.nii.gz: no scan of this name in imagesTr',
    'd': 'imagesTr/d_0000.nii.gz: a link to ../annex/gone, which is not there; get that file',
    'e': 'labelsTr/e.nii.gz: cannot be read, it is empty; copy it again',
    'f': 'imagesTr/f_0001.nii.gz: a second channel; one CT channel (_0000) is supported',
    'g': 'labelsTr/g.NII.GZ and g.nii.gz are both of case g; keep one',
    'h': 'imagesTr/h_0000.mgz: in a format that is not read; convert it to .nii.gz',
  }


def test_numbers_of_four_digits_are_channels_only_where_they_must_be(tmp_path):
  write(tmp_path, cases=('case_0000', 'case_0001', 'case_0201'), ending='.nii.gz')
  write(tmp_path, cases=('x_0000',))
  assert [case.name for case in cases_of(tmp_path)] == [
    'case_0000', 'case_0001', 'case_0201', 'x_0000'
  ]  # fmt: skip
  assert not fails(tmp_path)
  # A test scan without labels is none, and told of.
  image = tmp_path / 'imagesTr/case_0201.nii.gz'
  (tmp_path / 'imagesTs').mkdir()
  shutil.copy(image, tmp_path / 'imagesTs/case_0202.nii.gz')
  cases, notes = sources.get_source('nifti_folder').listed(str(tmp_path))
  assert len(cases) == 4
  assert notes == [
    'scans of imagesTs without a label map in labelsTs, left out: 1, first '
    f'{tmp_path}/imagesTs/case_0202.nii.gz'
  ]


def test_folders_are_found_in_any_case_of_letters(tmp_path):
  write(tmp_path)
  write(tmp_path, cases=['t'], part='Ts')
  for name in ('imagesTs', 'labelsTs', 'labelsTr'):
    (tmp_path / name).rename(tmp_path / name.title())
  source = sources.get_source('nifti_folder')
  cases, notes = source.listed(str(tmp_path))
  assert {case.name: case.split for case in cases} == dict.fromkeys('abc', 'train') | {'t': 'test'}
  assert not notes and not fails(tmp_path)
  (tmp_path / 'IMAGESTR').mkdir()
  assert source.listed(str(tmp_path))[1] == [
    f'{tmp_path}/IMAGESTR: left out, as imagesTr is beside it'
  ]
  (tmp_path / 'Imagests').rename(tmp_path / 'moved')
  (tmp_path / 'imagesTs').symlink_to('gone')
  with pytest.raises(sources.SourceError, match='imagesTs: no folder, or a link to none'):
    source.listed(str(tmp_path))


def test_what_is_left_out_is_told(tmp_path, capsys):
  folder = write(tmp_path / 'mine')
  images = tmp_path / 'mine/imagesTr'
  (images / 'notes.txt').write_text('x')
  (images / '._a_0000.nii.gz').write_bytes(b'x')
  (images / 'older').mkdir()
  command = ['--source=nifti_folder', f'--manual_dir={folder}', f'--data_dir={tmp_path / "data"}']
  assert prepare.main([*command, '--spacing=3,3,4', '--brick=16']) == 0
  notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith('note: ')]
  assert notes == [
    f'note: {images}: left out: hidden (1 file)',
    f'note: {images}: left out: text (1 file)',
    f'note: {images}/older: a folder, not looked into',
  ]
  (images / 'a_0000.nii.gz').unlink()
  assert prepare.main([*command, '--spacing=3,3,4', '--brick=16']) == 1
  assert 'skipped a: ' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('affine', 'shape', 'message'),
  [
    (np.diag([3.0, 3, 4, 1]), (20, 16, 12), r'axes RAS, .*but a_0000\.nii\.gz LAS'),
    (np.diag([-3.0, 3, 5, 1]), (20, 16, 12), r'5\.0\] mm'),
    (AFFINE, (20, 16, 11), r'shape \(20, 16, 11\)'),
  ],
)
def test_a_label_map_on_another_grid_is_refused(affine, shape, message, tmp_path):
  write(tmp_path, INDEX | {'missing_is': 'absent'})
  nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / 'labelsTr' / 'a.nii.gz')
  case = next(case for case in cases_of(tmp_path) if case.name == 'a')
  with pytest.raises(sources.SourceError, match=message):
    case.load()


def test_unknown_label_value_names_file_and_value(tmp_path):
  write(tmp_path)
  label = nib.Nifti1Image(np.full((20, 16, 12), 9, np.uint8), AFFINE)
  nib.save(label, tmp_path / 'labelsTr' / 'a.nii.gz')
  case = next(case for case in cases_of(tmp_path) if case.name == 'a')
  with pytest.raises(ValueError, match=r'a\.nii\.gz: label values \[9\]'):
    case.load()


def test_two_folders_with_different_new_classes_make_one_batch(tmp_path, capsys):
  """Both call their own class 39 on disk; the run's template keeps them apart."""
  other = {'labels': {'Liver': 1, 'sarcoma': 2, 'x': [3, 4, 5]}, 'ignored': ['x']}
  other['new_classes'] = [{'name': 'sarcoma'}]
  data = tmp_path / 'data'
  for name, index in (('mine', INDEX), ('yours', other)):
    folder = write(tmp_path / name, index)
    command = ['--source=nifti_folder', f'--manual_dir={folder}', f'--data_dir={data}']
    assert prepare.main([*command, f'--name={name}', '--spacing=3,3,4', '--brick=16']) == 0
  template = bricks.read_template(data, ['mine', 'yours'], [{'name': 'spare'}])
  added = {entry['name']: entry['index'] for entry in template.additions()}
  assert added == {'spare': 39, 'metastasis': 40, 'sarcoma': 41}
  assert TEMPLATE.extend(template.additions()).additions() == template.additions()
  stores = [bricks.open_bricks(data, name, template) for name in ('mine', 'yours')]
  classes = ('liver', 'metastasis', 'sarcoma')
  assert [store.class_voxels(classes).sum(0).tolist() for store in stores] == [
    [160, 2, 0],  # two training cases
    [158, 0, 2],
  ]
  config = pipeline_config()
  sampler = PatchSampler(config, stores, classes)
  table = template.code_table(classes)
  seen = set()
  for index in range(12):
    example = sampler.sample(index, 0)
    supervised = tuple(example['supervised'].tolist())
    seen.add(supervised)
    assert not (table[example['label']].any((0, 1, 2)) & ~example['supervised']).any()
  assert seen == {(True, True, False), (True, False, True)}
  (volume,) = bricks.open_volumes(data, 'yours', template)
  assert (volume.codes == 41).sum() == 1
  # Opened on their own they use their own codes, and do not mix.
  with pytest.raises(PipelineError, match='read_template'):
    PatchSampler(config, [bricks.open_bricks(data, name) for name in ('mine', 'yours')], classes)
  # Other new classes than it was prepared with are noticed: what is stored follows.
  write(tmp_path / 'yours', {**other, 'new_classes': [{'name': 'sarcoma', 'synonyms': ['STS']}]})
  command = ['--source=nifti_folder', f'--manual_dir={tmp_path / "yours"}', f'--data_dir={data}']
  assert prepare.main([*command, '--name=yours', '--spacing=3,3,4', '--brick=16']) == 0
  assert '3 replaced' in capsys.readouterr().out
  assert bricks.read_template(data, ['yours']).find('STS').name == 'sarcoma'


def test_who_declares_a_class_first_says_how_it_is_asked_for(tmp_path):
  """A model is asked as it was trained, whatever the folder that it is scored on says."""
  for name, more in (('mine', {'noun': 'the high-dose target volume'}), ('yours', {})):
    template = TEMPLATE.extend([{'name': 'ptv70', 'synonyms': [f'{name} 70'], **more}])
    report = {'settings': {'version': bricks.VERSION}, 'new_classes': template.additions()}
    (tmp_path / name).mkdir()
    (tmp_path / name / bricks.SETTINGS).write_text(json.dumps(report))
  asked = 'A computerized tomography of the high-dose target volume'
  both = bricks.read_template(tmp_path, ['mine', 'yours']).get('ptv70')
  assert both.prompt == asked and both.synonyms == ('mine 70', 'yours 70')
  trained = bricks.read_template(tmp_path, ['mine']).additions()
  assert bricks.read_template(tmp_path, ['yours'], trained).get('ptv70').prompt == asked


def pipeline_config(patch=(8, 8, 8)):
  return ml_collections.ConfigDict(
    {
      'patch': patch,
      'windows': ((-175.0, 250.0),),
      'foreground': 1.0,
      'balance': 'sources',
      'cache_mb': 8,
      'num_parallel': 1,
      'augment': {'enabled': False},
    }
  )


def test_target_volume_of_openkbp(real_data):
  source = sources.get_source('openkbp_ptv')
  cases = source.cases(str(real_data / 'openkbp'))
  assert len(cases) == 186
  template = source.template(None)
  scan = cases[0].load()
  target = template.code_table(['ptv70'])[scan.codes, 0]
  contours = nib.load(real_data / 'openkbp' / 'train' / f'{cases[0].name}_ptv.nii.gz')
  assert target.sum() == (np.asarray(contours.dataobj) == 70).sum() > 0


def test_scans_are_numbered_where_their_label_maps_are(tmp_path):
  """One without a label map is no second channel."""
  write(tmp_path)
  for part, end in (('images', '_0000'), ('labels', '')):
    for number, name in enumerate('abc'):
      old = tmp_path / f'{part}Tr/{name}{end}.nii.gz'
      old.rename(tmp_path / f'{part}Tr/patient_{number:04d}.nii.gz')
  (tmp_path / 'labelsTr/patient_0001.nii.gz').unlink()
  named = {case.name: case for case in cases_of(tmp_path)}
  assert sorted(named) == ['patient_0000', 'patient_0001', 'patient_0002']
  with pytest.raises(UserError, match='patient_0001.nii.gz: no labelsTr/patient_0001'):
    named['patient_0001'].load()


def test_the_prepared_source_keeps_licence_and_citation(tmp_path):
  write(tmp_path / 'mine', INDEX | {'licence': 'CC BY 4.0', 'reference': 'Doe 2026'})
  prepare.prepare(
    'nifti_folder', tmp_path / 'data', manual_dir=str(tmp_path / 'mine'), spacing=(4, 4, 4), brick=8
  )
  info = next((tmp_path / 'data').glob('nifti_folder/bricks/*/dataset_info.json')).read_text()
  assert json.loads(info)['citation'] == 'Doe 2026'
  assert 'CC BY 4.0' in info
  write(tmp_path / 'other', INDEX | {'licence': ['CC BY 4.0']})
  with pytest.raises(UserError, match='"licence" is .*; expected a text'):
    sources.get_source('nifti_folder').terms(str(tmp_path / 'other'))
