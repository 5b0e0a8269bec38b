import collections
import json

import numpy as np
import pytest

from input_pipeline import bricks, sources
from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE
from input_pipeline.bricks import writer
from input_pipeline.sources import openkbp
from input_pipeline.sources.phantom import trunk


def test_unknown_source_lists_the_known():
  with pytest.raises(sources.SourceError, match='did you mean openkbp'):
    sources.get_source('opnkbp')
  with pytest.raises(sources.SourceError, match='nifti_folder, openkbp, '):
    sources.get_source('mine')


@pytest.mark.parametrize('name', sources.SOURCES)
def test_every_source_says_what_it_is(name):
  source = sources.get_source(name)
  assert source.name == name
  assert source.description
  assert source.licence


@pytest.mark.parametrize(
  ('labelled', 'expected'),
  [
    (('liver',), {6: 6, 27: 6, 15: 6, 2: 0, 204: 0}),
    (('liver tumor',), {6: 0, 27: 27}),
    (('liver', 'liver tumor'), {6: 6, 27: 27}),
    # The cyst of a dataset that knows no kidneys has no side; without cysts it is plain kidney.
    (('kidney cyst',), {2: 0, 203: 32, 204: 32}),
    (('right kidney', 'left kidney'), {203: 2, 204: 3, 201: 2, 32: 0}),
    (('right kidney', 'kidney cyst'), {203: 203, 204: 32, 3: 0}),
  ],
)
def test_restricted_codes(labelled, expected):
  table = sources.restrict_table(labelled)
  assert {code: int(table[code]) for code in expected} == expected


def test_restricting_loses_nothing_that_is_labelled():
  names = TEMPLATE.names()
  rng = np.random.default_rng(0)
  members = TEMPLATE.code_table(names)
  for _ in range(50):
    labelled = rng.random(len(names)) < 0.3
    table = sources.restrict_table([n for n, yes in zip(names, labelled, strict=True) if yes])
    np.testing.assert_array_equal(members[table][:, labelled], members[:, labelled])
    # A voxel of no labelled class is background; what nobody looked at stays so.
    assert not table[:IGNORE_CODE][~members[:IGNORE_CODE, labelled].any(1)].any()
    assert table[IGNORE_CODE] == IGNORE_CODE


class TestPhantom:
  def test_every_class_is_labelled_by_a_third_and_no_case_labels_all(self):
    cases = [c for c in sources.phantom_cases() if c.split == 'train']
    assert len(cases) == 24
    count = collections.Counter(name for case in cases for name in case.supervised)
    assert set(count) == set(trunk.CLASSES)
    assert min(count.values()) >= len(cases) / 3
    assert max(len(case.supervised) for case in cases) < len(trunk.CLASSES)

  def test_validation_labels_everything_on_other_patients(self):
    cases = sources.phantom_cases()
    held_out = [c for c in cases if c.split == 'validation']
    assert len(held_out) == 6
    assert all(set(c.supervised) == set(trunk.CLASSES) for c in held_out)
    assert len({c.name for c in cases}) == len(cases)

  def test_choices_are_made_on_other_phantoms(self):
    split = lambda name, part: {
      c.name for c in sources.get_source(name).cases(None) if c.split == part
    }
    assert split('phantom_tune', 'train') == split('phantom', 'train')
    tune, reported = split('phantom_tune', 'validation'), split('phantom', 'validation')
    assert len(tune) == len(reported) == 6
    assert not tune & reported

  def test_scan_holds_only_what_its_dataset_labels(self):
    cases = sources.phantom_cases(train=3, validation=0, spacing=(8, 8, 8))
    assert len({case.source for case in cases}) == 3
    full = trunk.make_phantom(0, spacing=(8, 8, 8))[1]
    for case in cases:
      scan = case.load()
      assert scan.codes.dtype == np.uint8
      present = TEMPLATE.code_table(TEMPLATE.names())[scan.codes].any((0, 1, 2))
      assert {n for n, p in zip(TEMPLATE.names(), present, strict=True) if p} <= set(
        case.supervised
      )
    # The first dataset labels the liver: its voxels are those of the whole phantom, tumor included.
    liver = TEMPLATE.code_table(['liver'])[:, 0]
    np.testing.assert_array_equal(liver[cases[0].load().codes], liver[full])


class TestOpenKbp:
  def test_missing_folder_and_index_are_named(self, tmp_path):
    cases = sources.get_source('openkbp').cases
    with pytest.raises(sources.SourceError, match='--manual_dir'):
      cases(None)
    with pytest.raises(sources.SourceError, match=r'train/dataset\.json'):
      cases(str(tmp_path))
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'dataset.json').write_text('{"cases": [{"id": "pt_1"}]}')
    with pytest.raises(sources.SourceError, match='not an OpenKBP index'):
      cases(str(tmp_path))

  def test_missing_image_is_named(self, tmp_path):
    (tmp_path / 'train').mkdir()
    entry = {'id': 'pt_1', 'ct': 'pt_1_ct.nii.gz', 'oar': 'pt_1_oar.nii.gz'}
    (tmp_path / 'train' / 'dataset.json').write_text(json.dumps({'cases': [entry]}))
    entry |= {'labelled_organs': ['Larynx'], 'label_slices': {}}
    for split in ('train', 'val'):
      (tmp_path / split).mkdir(exist_ok=True)
      (tmp_path / split / 'dataset.json').write_text(json.dumps({'cases': [entry]}))
    case, *_ = sources.get_source('openkbp').cases(str(tmp_path))
    with pytest.raises(sources.SourceError, match=r'pt_1_ct\.nii\.gz: listed in'):
      case.load()

  def test_a_patient_without_target_volume_is_told_of(self, tmp_path):
    for split, names in (('train', ['pt_1', 'pt_2']), ('val', ['pt_3'])):
      (tmp_path / split).mkdir()
      entries = [
        {'id': name, 'ct': f'{name}_ct.nii.gz', 'oar': f'{name}_oar.nii.gz',
         'labelled_organs': ['Larynx']}
        for name in names
      ]  # fmt: skip
      (tmp_path / split / 'dataset.json').write_text(json.dumps({'cases': entries}))
    (tmp_path / 'train/pt_1_ptv.nii.gz').touch()
    cases, notes = sources.get_source('openkbp_ptv').listed(str(tmp_path))
    assert [case.name for case in cases] == ['pt_1']
    assert notes == [
      'openkbp_ptv: patients without a target volume, left out: 2, first '
      f'{tmp_path}/train/pt_2_ptv.nii.gz'
    ]

  def test_slice_range_spans_whole_slices(self):
    # Ten slices of 2.5 mm. Slices 2..5 from below reach from 1.5 to 5.5 slices above the lowest
    # centre; slices 2..5 from above are 4..7 from below.
    entry = {'id': 'pt_1', 'axcodes': 'RAS', 'shape': [4, 4, 10], 'spacing_mm': [1, 1, 2.5]}
    assert openkbp._heights(entry, [2, 5]) == (3.75, 13.75)
    assert openkbp._heights({**entry, 'axcodes': 'PLI'}, [2, 5]) == (8.75, 18.75)
    with pytest.raises(sources.SourceError, match='pt_1: axcodes RSA'):
      openkbp._heights({**entry, 'axcodes': 'RSA'}, [2, 5])

  def test_real_cases(self, real_data):
    cases = sources.get_source('openkbp').cases(str(real_data / 'openkbp'))
    assert collections.Counter(c.split for c in cases) == {'train': 158, 'validation': 29}
    case = next(c for c in cases if c.name == 'pt_201')
    assert len(case.labelled) == 7
    assert set(case.slice_ranges) - set(case.absent) == {'spinal cord', 'esophagus'}
    scan = case.load()
    heights = np.arange(scan.codes.shape[2]) * scan.geometry.spacing[2]
    for name in ('spinal cord', 'esophagus'):
      low, high = case.slice_ranges[name]
      labelled = heights[(scan.codes == TEMPLATE.get(name).index).any((0, 1))]
      half = scan.geometry.spacing[2] / 2
      np.testing.assert_allclose((low + half, high - half), (labelled.min(), labelled.max()))
    x = [
      np.argwhere(scan.codes == TEMPLATE.get(f'{s} parotid').index)[:, 0].mean()
      for s in ('right', 'left')
    ]
    assert x[0] > x[1]

  def test_parts_keep_a_third_of_the_training_labels(self, real_data):
    folder = str(real_data / 'openkbp')
    whole = {case.name: case for case in sources.get_source('openkbp').cases(folder)}
    parts = sources.get_source('openkbp_parts').cases(folder)
    kinds = {case.labelled for case in parts if case.split == 'train'}
    assert len(set().union(*kinds)) == 7 and all(len(kind) <= 3 for kind in kinds)
    for case in parts:
      if case.split == 'train':
        ranges = set(case.slice_ranges) - set(case.absent)
        assert ranges <= set(case.labelled) <= set(whole[case.name].labelled)
      else:
        assert case.labelled == whole[case.name].labelled

  def test_patients_are_prepared_with_the_organs_of_the_index(self, real_data, tmp_path):
    """Per-organ counts of dataset.json; of the scans kept on their own grids, voxel for voxel."""
    folder = real_data / 'openkbp'
    source = sources.get_source('openkbp')
    cases = source.cases(str(folder))
    some = cases[::8]  # all are listed; of those that are read, each split has every organ
    for split in ('train', 'validation'):
      organs = {name for case in some if case.split == split for name in case.labelled}
      assert organs == set(source.classes)
    written = writer.write(source, some, tmp_path, spacing=(8, 8, 6), brick=32)
    assert written.done == collections.Counter(case.split for case in some)
    assert not written.skipped
    settings = {'settings': {'version': bricks.VERSION}}
    (tmp_path / 'openkbp' / bricks.SETTINGS).write_text(json.dumps(settings))
    store = bricks.open_bricks(tmp_path, 'openkbp')
    held_out = bricks.open_volumes(tmp_path, 'openkbp')
    names = source.classes
    voxels_of = store.class_voxels(names)
    prepared = {'train': store.cases, 'val': list(held_out)}
    for split, infos in prepared.items():
      index = json.loads((folder / split / 'dataset.json').read_text())
      listed = [c for c in cases if (c.split == 'train') == (split == 'train')]
      assert len(listed) == index['n_cases']
      count = collections.Counter(name for case in listed for name in case.labelled)
      assert count == {openkbp.ORGANS[o][1]: n for o, n in index['cases_with_organ'].items()}
      entries = {entry['id']: entry for entry in index['cases']}
      for number, info in enumerate(infos):
        voxels = {openkbp.ORGANS[o]: n for o, n in entries[info.name]['voxels'].items()}
        if split == 'train':  # resampled: what is labelled is there
          present = voxels_of[store.case == number].sum(0) > 0
          assert {n for n, p in zip(names, present, strict=True) if p} == {n for _, n in voxels}
        else:
          codes = infos[number].codes
          assert {n: (codes == TEMPLATE.get(n).index).sum() for _, n in voxels} == {
            n: count for (_, n), count in voxels.items()
          }
          assert (codes > 0).sum() == sum(voxels.values())

  def test_tune_holds_out_sixteen_training_patients_only(self, real_data):
    folder = str(real_data / 'openkbp')
    train = {c.name for c in sources.get_source('openkbp').cases(folder) if c.split == 'train'}
    tune = sources.get_source('openkbp_tune').cases(folder)
    held_out = {c.name for c in tune if c.split == 'validation'}
    assert len(held_out) == 16
    assert {c.name for c in tune} == train
