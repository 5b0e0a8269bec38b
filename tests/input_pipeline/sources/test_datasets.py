"""Every public dataset: a small fabricated download in its official layout, from files to batches.

The golden files hold the rows of the datasets' published label tables: label value -> code in a box
on the right and in one on the left, and the supervised classes.
"""

import dataclasses
import json
import pathlib
import pickle
import shutil
import warnings

import ml_collections
import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks, prepare, sources
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.batches.sampler import PatchSampler
from input_pipeline.ct import volume
from input_pipeline.errors import UserError
from input_pipeline.prepare import check
from tests.input_pipeline.sources import layouts

GOLDEN = pathlib.Path(__file__).with_name('golden')
CONFIG = ml_collections.ConfigDict(
  {
    'patch': (8, 8, 8),
    'windows': ((-175.0, 250.0),),
    'foreground': 1.0,
    'balance': 'sources',
    'cache_mb': 8,
    'num_parallel': 1,
    'augment': {'enabled': False},
  }
)


def golden(name):
  published = json.loads((GOLDEN / f'{name}.json').read_text())
  return {int(value): codes for value, codes in published['codes'].items()}, published['supervised']


def fabricate(name, folder):
  """Writes the download; returns its cases and label value -> boxes."""
  codes, _ = golden(name)
  boxes = layouts.LAYOUTS[name](folder, list(codes))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # scans without labels are left out
    return sources.get_source(name).cases(str(folder)), boxes


def test_every_dataset_has_a_layout_and_a_golden_file():
  others = {name for name in sources.SOURCES if name.startswith(('phantom', 'openkbp'))}
  others |= {'nifti_folder', 'rtstruct_folder'}
  assert set(layouts.LAYOUTS) == set(sources.SOURCES) - others
  assert {path.stem for path in GOLDEN.glob('*.json')} == set(layouts.LAYOUTS)


@pytest.mark.parametrize('name', layouts.LAYOUTS)
def test_labels_equal_the_published_table(name, tmp_path):
  cases, boxes = fabricate(name, tmp_path)
  codes, supervised = golden(name)
  image = layouts.body(codes)[0]
  template = sources.get_source(name).template(str(tmp_path))
  assert cases
  for case in cases:
    scan = pickle.loads(pickle.dumps(case)).load()  # as on a Beam worker
    assert [template.get(n).index for n in case.labelled] == supervised
    np.testing.assert_array_equal(scan.image, np.maximum(image, -1024))
    np.testing.assert_allclose(scan.geometry.spacing, layouts.SPACING)
    expected = np.zeros(layouts.SHAPE, np.uint8)
    for value, sides in boxes.items():
      for box, code in zip(sides, codes[value], strict=True):
        expected[box] = code
    np.testing.assert_array_equal(scan.codes, expected)
  assert set(supervised) <= {template.get(n).index for n in sources.get_source(name).classes}


@pytest.mark.parametrize('name', layouts.LAYOUTS)
def test_from_files_to_batches(name, tmp_path):
  cases, _ = fabricate(name, tmp_path / 'download')
  data = tmp_path / 'data'
  command = [f'--source={name}', f'--manual-dir={tmp_path / "download"}', f'--data-dir={data}']
  assert prepare.main([*command, '--spacing=8,8,6', '--brick=16']) == 0
  held_out = [case for case in cases if case.split != 'train']
  assert len(bricks.open_volumes(data, name)) == len(held_out)
  if len(held_out) < len(cases):
    store = bricks.open_bricks(data, name)
    labelled = [name for name in cases[0].labelled if store.class_voxels([name]).any()]
    classes = labelled or list(cases[0].absent)
    sampler = PatchSampler(CONFIG, [store], classes)
    table = store.template.code_table(classes)
    for index in range(4):
      example = sampler.sample(index, 0)
      assert example['supervised'].all()
      assert table[example['label']].any() == bool(labelled)


class TestSpecialCases:
  def test_later_btcv_scans_and_the_original_labels_say_less(self, tmp_path):
    image, label, _ = layouts.body(range(1, 15))
    for number in (1, 61, 4, 62):
      layouts.nifti(tmp_path / f'img/img{number:04d}.nii.gz', image)
    # Those of Zenodo in a folder that is called as Synapse's.
    layouts.nifti(tmp_path / 'label/label0062.nii.gz', label)
    for number in (1, 61):
      layouts.nifti(tmp_path / f'label_btcv_multiorgan/label{number:04d}.nii.gz', label)
    layouts.nifti(tmp_path / 'label/label0001.nii.gz', np.minimum(label, 13))
    layouts.nifti(tmp_path / 'label/label0004.nii.gz', np.where(label == 14, 0, label))
    cases = {case.name: case for case in sources.get_source('btcv').cases(str(tmp_path))}
    assert cases['0001'].supervised == TEMPLATE.names()[:14]
    assert cases['0004'].supervised == TEMPLATE.names()[:13]
    assert cases['0062'].supervised == cases['0061'].supervised
    indices = [TEMPLATE.get(name).index for name in cases['0061'].supervised]
    assert indices == [1, 3, 4, 5, 6, 7, 11, 14]
    assert set(np.unique(cases['0061'].load().codes)) == {0, *indices}

  def test_btcv_as_tutorials_lay_it_out(self, tmp_path):
    image, label, _ = layouts.body(range(1, 14))
    layouts.nifti(tmp_path / 'imagesTr/img0001.nii.gz', image)
    layouts.nifti(tmp_path / 'labelsTr/label0001.nii.gz', label)
    (case,) = sources.get_source('btcv').cases(str(tmp_path))
    assert case.supervised == TEMPLATE.names()[:13]
    assert set(np.unique(case.load().codes)) == {*range(14)}

  def test_a_scan_that_abdomenct_1k_holds_twice_is_of_one_patient(self, tmp_path):
    image, label, _ = layouts.body(range(1, 5))
    for number in (297, 928, 929):
      layouts.nifti(tmp_path / f'Image/Case_{number:05d}_0000.nii.gz', image)
      layouts.nifti(tmp_path / f'Mask/Case_{number:05d}.nii.gz', label)
    cases = sources.get_source('abdomenct_1k').cases(str(tmp_path))
    assert [case.patient or case.name for case in cases] == ['Case_00297'] * 2 + ['Case_00929']
    assert cases[0].split == cases[1].split

  def test_kits19_has_no_cysts(self, tmp_path):
    image, label, boxes = layouts.body([1, 2])
    layouts.nifti(tmp_path / 'data/case_00000/imaging.nii.gz', image)
    layouts.nifti(tmp_path / 'data/case_00000/segmentation.nii.gz', label)
    (case,) = sources.get_source('kits').cases(str(tmp_path))
    assert case.supervised == ('right kidney', 'left kidney', 'kidney tumor')
    assert set(np.unique(case.load().codes)) == {0, 2, 3, 201, 202}

  @pytest.mark.parametrize('marker', ['kits23.json', 'instances'])
  def test_the_cysts_of_kits23_are_not_taken_for_kidney(self, marker, tmp_path):
    """Its files are called as those of KiTS19, which labels no cysts."""
    fabricate('kits23', tmp_path)
    if marker == 'instances':  # of a copy without the list of patients
      (tmp_path / 'dataset/kits23.json').unlink()
    else:
      shutil.rmtree(tmp_path / 'dataset/case_00001/instances')
    for folder in (tmp_path, tmp_path / 'dataset'):
      told = f'{marker}: is of KiTS23, .*: the source kits23'
      with pytest.raises(sources.SourceError, match=told):
        sources.get_source('kits').cases(str(folder))

  def test_kits19_is_not_taken_for_kits23(self, tmp_path):
    image, label, _ = layouts.body([1, 2])
    layouts.nifti(tmp_path / 'data/case_00000/imaging.nii.gz', image)
    layouts.nifti(tmp_path / 'data/case_00000/segmentation.nii.gz', label)
    (tmp_path / 'data/kits.json').write_text('[]')
    with pytest.raises(sources.SourceError, match='kits.json: is of KiTS19 .*: the source kits'):
      sources.get_source('kits23').cases(str(tmp_path))

  def test_amos_leaves_out_mri_and_keeps_official_splits(self, tmp_path):
    image, label, _ = layouts.body([1])
    for part, number in (('Tr', 1), ('Tr', 507), ('Va', 8)):
      layouts.nifti(tmp_path / f'images{part}/amos_{number:04d}.nii.gz', image)
      layouts.nifti(tmp_path / f'labels{part}/amos_{number:04d}.nii.gz', label)
    cases = sources.get_source('amos22').cases(str(tmp_path))
    assert {c.name: c.split for c in cases} == {'amos_0001': 'train', 'amos_0008': 'validation'}

  def test_the_prostate_of_amos_is_labelled_in_men_alone(self, tmp_path):
    image, label, _ = layouts.body([14, 15])
    for number in (1, 2, 3):
      layouts.nifti(tmp_path / f'imagesTr/amos_{number:04d}.nii.gz', image)
      layouts.nifti(tmp_path / f'labelsTr/amos_{number:04d}.nii.gz', label)
    source = sources.get_source('amos22')
    cases, notes = source.listed(str(tmp_path))
    assert not any('prostate' in case.supervised for case in cases)
    assert any('labeled_data_meta_0000_0599.csv' in note for note in notes)
    table = tmp_path / 'labeled_data_meta_0000_0599.csv'
    table.write_text("amos_id,Patient's Sex\n1,M\n2,F\n")  # of the third it does not tell
    cases, notes = source.listed(str(tmp_path))
    assert ['prostate' in case.supervised for case in cases] == [True, False, False]
    bladder, prostate = (TEMPLATE.get(name).index for name in ('bladder', 'prostate'))
    codes = [set(np.unique(case.load().codes)) for case in cases]
    assert codes == [{0, bladder, prostate}, {0, bladder}, {0, bladder}] and not notes
    table.write_text('amos_id;Sex\n1;M\n')
    with pytest.raises(UserError, match='no column "Patient.s Sex"'):
      source.cases(str(tmp_path))

  def test_ct_org_tests_on_its_first_21(self, tmp_path):
    image, label, _ = layouts.body([1])
    for number in (0, 20, 21, 139):
      layouts.nifti(tmp_path / f'volume-{number}.nii.gz', image)
      layouts.nifti(tmp_path / f'labels-{number}.nii.gz', label)
    splits = {c.name: c.split for c in sources.get_source('ct_org').cases(str(tmp_path))}
    assert splits['0'] == splits['20'] == 'test'
    assert 'test' not in (splits['21'], splits['139'])

  def test_totalsegmentator_on_a_real_scan(self, real_data, tmp_path):
    """Its own multi-label example, put into the layout of the download."""
    folder = real_data / 'totalsegmentator'
    names = json.loads((folder / 'labels_total_v2.json').read_text())
    names = {int(k): v for k, v in (names.get('labels') or names).items()}
    label = nib.load(folder / 'example_seg_fast_force_split.nii.gz')
    array = np.asarray(label.dataobj).copy()
    values = {v: k for k, v in names.items()}
    cyst = np.argwhere(array == values['kidney_right'])[:50]
    array[tuple(cyst.T)] = values['kidney_cyst_right']  # the example has none
    case = tmp_path / 's0000'
    (case / 'segmentations').mkdir(parents=True)
    (case / 'ct.nii.gz').symlink_to(folder / 'example_ct.nii.gz')
    for value, name in names.items():
      mask = nib.Nifti1Image((array == value).astype(np.uint8), label.affine)
      nib.save(mask, case / 'segmentations' / f'{name}.nii.gz')
    (tmp_path / 'meta.csv').write_text('image_id;split\ns0000;train\n')
    (case,) = sources.get_source('totalsegmentator').cases(str(tmp_path))
    assert len(case.supervised) == 21
    scan = case.load()
    assert (scan.codes == 6).sum() == (array == values['liver']).sum() > 0
    kidney = np.isin(array, [values['kidney_right'], values['kidney_cyst_right']])
    assert np.array_equal(scan.codes == TEMPLATE.get('right kidney').index, kidney)
    assert check.check_scan(scan, case.supervised) == []
    mirrored = sources.Scan(scan.image[::-1], scan.codes[::-1], scan.geometry)
    messages = check.check_scan(mirrored, case.supervised)
    assert any('liver is not right of spleen' in message for message in messages)


@pytest.mark.parametrize(
  ('axis', 'told'),
  [
    (1, ['liver is not in front of right kidney', 'stomach is not in front of left kidney']),
    (2, ['esophagus is not above duodenum']),
  ],
)
def test_abdominal_labels_that_lie_turned_on_their_scan_are_told(axis, told):
  """As where the header of a label map, but not of its scan, has an axis the wrong way round."""
  places = {
    'liver': (12, 12, 8), 'right kidney': (12, 4, 6), 'stomach': (4, 12, 8),
    'left kidney': (4, 4, 6), 'esophagus': (8, 6, 14), 'duodenum': (8, 8, 4),
  }  # fmt: skip
  codes = np.zeros((20, 20, 20), np.uint8)
  for name, place in places.items():
    codes[tuple(slice(at, at + 3) for at in place)] = TEMPLATE.get(name).index
  image = np.full(codes.shape, 40, np.float32)
  geometry = volume.to_canonical(image, np.eye(4)).geometry
  assert check.check_scan(sources.Scan(image, codes, geometry), tuple(places)) == []
  turned = sources.Scan(image, np.flip(codes, axis), geometry)
  messages = check.check_scan(turned, tuple(places))
  assert messages == [f'{text}: is the scan mirrored or turned?' for text in told]


def test_a_structure_in_air_is_asked_about():
  """A trachea is rightly there, a liver is not."""
  template = TEMPLATE.extend([{'name': 'trachea'}])
  codes = np.zeros((8, 8, 8), np.uint8)
  codes[:4], codes[4:] = (template.get(name).index for name in ('trachea', 'liver'))
  image = np.full(codes.shape, -950, np.float32)
  scan = sources.Scan(image, codes, volume.to_canonical(image, np.eye(4)).geometry)
  messages = check.check_scan(scan, ('trachea', 'liver'), template)
  assert messages == [
    f'half of {name} is below -950 HU: if it holds no air, labels and scan do not match'
    for name in ('trachea', 'liver')
  ]


@pytest.mark.parametrize('expected', [1, 2, 3])
def test_fewer_cases_than_a_download_has_are_told_and_more_are_not(tmp_path, monkeypatch, expected):
  image, label, _ = layouts.body([1, 2])
  for number in (1, 2):
    layouts.nifti(tmp_path / f'volume-{number}.nii', image)
    layouts.nifti(tmp_path / f'segmentation-{number}.nii', label)
  source = dataclasses.replace(sources.get_source('lits'), expected=expected)
  monkeypatch.setitem(sources.SOURCES, 'lits', source)
  (_, findings), *_ = check.check_source('lits', str(tmp_path))
  assert [finding.message[:28] for finding in findings] == ['2 labelled cases, 3 expected'] * (
    expected == 3
  )


class TestDownloadProblems:
  def test_nothing_found_and_doubled_cases(self, tmp_path):
    source = sources.get_source('lits')
    with pytest.raises(sources.SourceError, match='no scan of lits'):
      source.cases(str(tmp_path))
    with pytest.raises(sources.SourceError, match='no such folder'):
      source.cases(str(tmp_path / 'x'))
    fabricate('lits', tmp_path)
    image = layouts.body([1])[0]
    layouts.nifti(tmp_path / 'Training Batch 2/volume-1.nii', image)
    first, *others = source.cases(str(tmp_path))
    with pytest.raises(sources.SourceError, match=r'volume-1\.nii: case 1 is also .*Batch 1'):
      first.load()
    assert len(others) == 2 and others[0].load()

  @pytest.mark.parametrize(
    ('name', 'scan', 'label_map'),
    [
      ('lits', 'volume-3.nii', 'segmentation-3.nii'),
      ('msd_spleen', 'imagesTr/spleen_10.nii.gz', 'labelsTr/spleen_10.nii.gz'),
    ],
  )
  def test_a_file_unpacked_into_a_folder_of_its_name_is_one_case(
    self, tmp_path, name, scan, label_map
  ):
    image, label, _ = layouts.body([1])
    for place, array in ((scan, image), (label_map, label)):
      folder = tmp_path / place
      layouts.nifti(folder / folder.name.removesuffix('.gz'), array)
    (case,), notes = sources.get_source(name).listed(str(tmp_path))
    assert case.load().image.shape == image.shape and not notes

  def test_every_nifti_file_is_a_case_or_told_of(self, tmp_path):
    folder = tmp_path / 'download'
    fabricate('lits', tmp_path / 'elsewhere')
    folder.mkdir()
    (folder / 'linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/up').symlink_to(folder)
    image, label, _ = layouts.body([1, 2])
    layouts.nifti(folder / 'volume-7.nii.gz', image)
    layouts.nifti(folder / 'segmentation-8.nii', label)
    layouts.nifti(folder / 'VOLUME-9.NII', image)
    layouts.nifti(folder / 'Segmentation-9.nii.gz', label)
    layouts.nifti(folder / 'mask.nii', label)
    (folder / 'volume-10.nii').symlink_to('../annex/gone')
    layouts.nifti(folder / 'segmentation-10.nii', label)
    cases, notes = sources.get_source('lits').listed(str(folder))
    assert [case.name for case in cases] == ['1', '10', '2', '3', '9']
    assert [note.split(', first ')[0] for note in notes] == [
      'lits: scans without a label map, left out: 1',
      'lits: label maps without a scan, left out: 1',
      'lits: other NIfTI files, left out: 1',
    ]
    with pytest.raises(UserError, match='volume-10.nii: cannot be read as NIfTI'):
      cases[1].load()
    assert cases[4].load().codes.any()

  @pytest.mark.parametrize(
    ('remove', 'message'),
    [
      ('ct.nii.gz', 's0001: no ct.nii.gz; unpack it again'),
      ('segmentations', 's0001: no segmentations/ with masks'),
      ('meta', r'ct\.nii\.gz: meta.csv gives s0001 no split'),
    ],
  )
  def test_a_damaged_scan_of_totalsegmentator_costs_only_itself(self, remove, message, tmp_path):
    fabricate('totalsegmentator', tmp_path)
    table = next(tmp_path.rglob('meta.csv'))
    scans = sorted(path for path in table.parent.iterdir() if path.is_dir())
    names = [path.name for path in scans]
    if remove == 'meta':
      lines = [line for line in table.read_text().splitlines() if 's0001' not in line]
      table.write_bytes('\r\n'.join([*lines, 's1400;x;train', '']).encode('utf-8-sig'))
    elif remove == 'segmentations':
      shutil.rmtree(scans[1] / remove)
    else:
      (scans[1] / remove).unlink()
    cases, notes = sources.get_source('totalsegmentator').listed(str(tmp_path))
    assert [case.name for case in cases] == names
    with pytest.raises(sources.SourceError, match=message):
      cases[1].load()
    assert cases[0].load().codes.any()
    assert len([note for note in notes if 'that are not there' in note]) == (remove == 'meta')
    (never,) = (note for note in notes if 'in every scan' in note)
    assert "'liver'" in never and "'spleen'" not in never and len(notes) <= 2

  def test_classes_that_some_scans_of_totalsegmentator_lack_are_told(self, tmp_path):
    """A download cut short: it is not to be trained on with fewer classes without a word."""
    fabricate('totalsegmentator', tmp_path)
    first, second, third = sorted(path.parent for path in tmp_path.rglob('ct.nii.gz'))
    for place in (second, third):
      (place / 'segmentations' / 'lung_lower_lobe_left.nii.gz').unlink()
      (place / 'segmentations' / 'spleen.nii.gz').unlink()
    shutil.copy(first / 'segmentations' / 'spleen.nii.gz',
                first / 'segmentations' / 'kidney_cyst_right.nii.gz')  # fmt: skip
    shutil.copy(first / 'segmentations' / 'spleen.nii.gz',
                second / 'segmentations' / 'kidney_cyst_right.nii.gz')  # fmt: skip
    cases, notes = sources.get_source('totalsegmentator').listed(str(tmp_path))
    told = [note for note in notes if 'in every scan' not in note]
    rest = 'not labelled there: if the download was cut short, unpack it again'
    missing = 'masks are missing in'
    assert told == [
      f"totalsegmentator: 'spleen', 'left lung': {missing} 2 of 3 scans, first {second}; {rest}",
      f"totalsegmentator: 'right kidney': {missing} 1 of 3 scans, first {third}; {rest}",
    ]
    kidneys = ['right kidney' in case.supervised for case in cases]
    assert kidneys == [True, True, False]  # its cysts would be background

  def test_a_patient_of_ircadb_without_masks_costs_only_itself(self, tmp_path):
    cases, _ = fabricate('ircadb', tmp_path)
    patient = next(path for path in tmp_path.rglob(cases[0].name) if path.is_dir())
    for path in patient.glob('MASKS_DICOM*'):
      path.rename(patient / path.name.replace('MASKS', 'GONE'))
    again = {case.name: case for case in sources.get_source('ircadb').cases(str(tmp_path))}
    assert again.keys() == {case.name for case in cases}
    with pytest.raises(sources.SourceError, match='no MASKS_DICOM or MASKS_DICOM.zip'):
      again[cases[0].name].load()
    (patient / 'masks_dicom.ZIP').write_bytes(b'x')
    again = {case.name: case for case in sources.get_source('ircadb').cases(str(tmp_path))}
    with pytest.raises(sources.SourceError, match='masks_dicom.ZIP: cannot be read .*zip'):
      again[cases[0].name].load()
    # Unpacked into a folder of its own name.
    inner = patient / patient.name
    inner.mkdir()
    (patient / 'masks_dicom.ZIP').unlink()
    for path in [path for path in patient.iterdir() if path != inner]:
      path.rename(inner / path.name.replace('GONE', 'MASKS'))
    again = {case.name: case for case in sources.get_source('ircadb').cases(str(tmp_path))}
    assert again[cases[0].name].load().codes.any()

  def test_check_reports_and_goes_on(self, tmp_path, capsys):
    fabricate('lits', tmp_path)
    folder = tmp_path / 'Training Batch 1'
    assert prepare.main(['--source=lits', '--check', f'--manual-dir={tmp_path}']) == 0
    assert '3 labelled cases, 131 expected' in capsys.readouterr().out
    image, label, _ = layouts.body([1, 2, 7])
    layouts.nifti(folder / 'segmentation-1.nii', label)
    broken = (folder / 'volume-2.nii').read_bytes()
    (folder / 'volume-2.nii').write_bytes(broken[: len(broken) // 2])
    image = image.astype(np.float32)
    image[3, 3, 3] = np.nan
    layouts.nifti(folder / 'volume-3.nii', image)
    assert prepare.main(['--source=lits', '--check', f'--manual-dir={tmp_path}']) == 1
    out = capsys.readouterr().out
    assert 'error: 1: ' in out and 'label values [7]' in out
    assert 'error: 2: ' in out and 'Error: ' not in out
    assert 'warning: 3:' in out and '1 voxels not finite' in out
    assert '3 cases read, 2 of them cannot be used' in out

  def test_unknown_mask_of_ircadb(self, tmp_path):
    fabricate('ircadb', tmp_path)
    masks = tmp_path / '3Dircadb1/3Dircadb1.2/MASKS_DICOM'
    (masks / 'liver').rename(masks / 'lever')
    cases = {case.name: case for case in sources.get_source('ircadb').cases(str(tmp_path))}
    with pytest.raises(sources.SourceError, match="unknown mask 'lever'"):
      cases['3Dircadb1.2'].load()
    assert cases['3Dircadb1.1'].load().codes.any()

  def test_chaos_in_other_letters(self, tmp_path):
    known, _ = fabricate('chaos', tmp_path)
    sets = tmp_path / 'Train_Sets'
    (sets / 'CT/2/DICOM_anon').rename(sets / 'CT/2/dicom_anon')
    (sets / 'CT/2/Ground').rename(sets / 'CT/2/ground')
    cases = sources.get_source('chaos').cases(str(tmp_path))
    assert [case.name for case in cases] == ['1', '2']
    np.testing.assert_array_equal(cases[1].load().codes, known[0].load().codes)
    (sets / 'CT').rename(sets / 'ct')
    assert len(sources.get_source('chaos').cases(str(tmp_path))) == 2

  def test_chaos_with_a_picture_missing(self, tmp_path):
    cases, _ = fabricate('chaos', tmp_path)
    (tmp_path / 'Train_Sets/CT/1/Ground/liver_GT_003.png').unlink()
    with pytest.raises(sources.SourceError, match='11 pictures for 12 slices'):
      cases[0].load()


def test_list_names_every_source(capsys):
  assert prepare.main(['--list']) == 0
  table = capsys.readouterr().out
  for source in sources.SOURCES.values():
    assert f'| {source.name} |' in table
