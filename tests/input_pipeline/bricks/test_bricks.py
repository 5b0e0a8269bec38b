import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from input_pipeline import bricks, prepare, sources
from input_pipeline.anatomy import OUTSIDE_CODE, TEMPLATE
from input_pipeline.bricks import shards, staging, writer
from input_pipeline.ct import volume
from input_pipeline.prepare import preparation

SPACING = (8.0, 9.0, 7.0)


def assemble(store, case):
  """A scan put together from its bricks by plain slicing."""
  shape = store.cases[case].shape
  padded = [-(-n // store.brick) * store.brick for n in shape]
  image = np.full(padded, volume.AIR, np.int16)
  codes = np.full(padded, OUTSIDE_CODE, np.uint8)
  for record in np.flatnonzero(store.case == case):
    inside = tuple(slice(p, p + store.brick) for p in store.position[record])
    image[inside], codes[inside] = store.read(record)
  return image, codes


def test_bricks_put_together_are_the_scan(tiny_data, tiny_cases):
  store = bricks.open_bricks(tiny_data, 'phantom')
  assert len(store.cases) == 6
  assert store.spacing == SPACING and store.tells_outside
  dropped = 0
  for number, info in enumerate(store.cases):
    case = next(c for c in tiny_cases if c.name == info.name)
    assert info.supervised == case.supervised
    image, codes, _ = bricks.to_spacing(case.load(), SPACING)
    found_image, found_codes = assemble(store, number)
    inside = tuple(map(slice, image.shape))
    np.testing.assert_array_equal(found_codes[inside], codes)
    differs = found_image[inside] != image
    assert (image[differs] <= -900).all()
    dropped += differs.any()
    # What lies beyond the scan is air, and not in the patient.
    found_image[inside], found_codes[inside] = volume.AIR, OUTSIDE_CODE
    assert (found_image == volume.AIR).all()
    assert (found_codes == OUTSIDE_CODE).all()


def test_air_around_the_patient_is_left_out_but_labelled_and_enclosed_air_is_kept():
  image = np.full((8, 4, 4), -1000, np.int16)
  image[7, 0, 0] = -899
  codes = np.full(image.shape, OUTSIDE_CODE, np.uint8)
  assert [p for p, _, _ in bricks.cut(image, codes, 4)] == [(4, 0, 0)]
  for code in (16, 0):
    codes[0, 0, 0] = code
    assert [p for p, _, _ in bricks.cut(image, codes, 4)] == [(0, 0, 0), (4, 0, 0)]


def test_air_around_the_patient_is_told_from_what_is_not_labelled():
  image = np.full((12, 12, 3), -1000, np.float32)
  image[3:9, 3:9] = 40
  image[5:7, 5:7] = -1000  # bowel gas
  codes = np.zeros(image.shape, np.uint8)
  codes[2:4, 3:9] = TEMPLATE.get('liver').index  # over the skin, too
  scan = sources.Scan(image, codes, volume.to_canonical(image, np.eye(4)).geometry)
  _, told, _ = bricks.to_spacing(scan, (1.0, 1.0, 1.0))
  around = np.ones(image.shape, bool)
  around[3:9, 3:9] = around[2, 3:9] = False
  np.testing.assert_array_equal(told, np.where(around, OUTSIDE_CODE, codes))


def test_offset_is_where_the_first_voxel_lies():
  # Five voxels of 2 mm span centres 0..8 mm, the middle at 4. Resampled to 3 mm: round(10 / 3) = 3
  # voxels, whose first centre lies one step before the middle, at 1 mm.
  scan = sources.Scan(
    np.zeros((5, 5, 5), np.float32),
    np.zeros((5, 5, 5), np.uint8),
    volume.to_canonical(np.zeros((5, 5, 5)), np.diag([2.0, 2, 2, 1])).geometry,
  )
  image, codes, offset = bricks.to_spacing(scan, (3.0, 2.0, 3.0))
  assert image.shape == codes.shape == (3, 5, 3)
  np.testing.assert_allclose(offset, (1, 0, 1))


def test_class_voxels_count_supervised_classes_only(tiny_data, tiny_cases):
  store = bricks.open_bricks(tiny_data, 'phantom')
  names = ('liver', 'liver tumor', 'right kidney', 'brainstem')
  counts = store.class_voxels(names)
  for number, info in enumerate(store.cases):
    codes = assemble(store, number)[1]
    expected = TEMPLATE.code_table(names)[codes].sum((0, 1, 2))
    # An atlas without tumors must not count its liver as tumor free.
    expected *= [name in info.supervised for name in names]
    np.testing.assert_array_equal(counts[store.case == number].sum(0), expected)
  assert (counts[:, 3] == 0).all()


def test_volumes_come_back_on_their_own_grid(tiny_data, tiny_cases):
  volumes = bricks.open_volumes(tiny_data, 'phantom')
  held_out = [c for c in tiny_cases if c.split == 'validation']
  assert [v.name for v in volumes] == [c.name for c in held_out]
  assert volumes[-1].name == held_out[-1].name
  with pytest.raises(IndexError):
    volumes[2]
  for record, case in zip(volumes, held_out, strict=True):
    scan = case.load()
    np.testing.assert_array_equal(record.image, scan.image)
    np.testing.assert_array_equal(record.codes, scan.codes)
    assert record.supervised == case.supervised
    assert record.split == 'validation'


def test_oblique_flipped_geometry_survives(tmp_path):
  affine = np.array([[0, -2.1, 0.3, 11], [-1.9, 0, 0.1, 7], [0, 0.2, -3.3, 1 / 3], [0, 0, 0, 1]])
  stored = np.random.default_rng(0).integers(-1024, 3000, (5, 6, 7)).astype(np.int16)
  canonical = volume.to_canonical(stored, affine)
  codes = (canonical.array > 0).astype(np.uint8)
  scan = sources.Scan(canonical.array.astype(np.float32), codes, canonical.geometry)
  ranges = {'spleen': (1.25, float('inf'))}
  case = sources.Case('phantom', 'a', 'test', ('spleen',), lambda: scan, ranges)
  writer.write(sources.get_source('phantom'), [case], tmp_path, spacing=(1, 1, 1), brick=8)
  (tmp_path / 'phantom' / bricks.SETTINGS).write_text(
    json.dumps({'settings': {'version': bricks.VERSION}})
  )
  (record,) = bricks.open_volumes(tmp_path, 'phantom')
  assert record.slice_ranges == ranges
  np.testing.assert_array_equal(record.geometry.affine, affine)
  np.testing.assert_array_equal(record.geometry.spacing, canonical.geometry.spacing)
  np.testing.assert_array_equal(volume.from_canonical(record.image, record.geometry), stored)
  with pytest.raises(
    bricks.NotPreparedError, match='no training cases of phantom; it was prepared without'
  ):
    bricks.open_bricks(tmp_path, 'phantom')


def test_tfds_reads_the_records_without_our_code(tiny_data):
  tfds = bricks.import_tfds()
  builder = tfds.builder_from_directory(tiny_data / 'phantom' / 'bricks' / bricks.VERSION)
  store = bricks.open_bricks(tiny_data, 'phantom')
  records = builder.as_data_source('train')
  assert len(records) == builder.info.splits['train'].num_examples == len(store)
  record = records[3]
  info = store.cases[store.case[3]]
  assert record['case'].decode() == info.name
  assert record['source'].decode() == info.source
  assert [name.decode() for name in record['supervised']] == list(info.supervised)
  np.testing.assert_array_equal(record['position'], store.position[3])
  np.testing.assert_array_equal(record['spacing'], np.float32(SPACING))
  np.testing.assert_array_equal(
    record['code_voxels'], np.bincount(record['label'].ravel(), minlength=256)
  )
  np.testing.assert_array_equal(record['image'], store.read(3)[0])


class TestPrepare:
  @pytest.fixture
  def small(self, monkeypatch):
    """The source `phantom` shrunk to three coarse scans."""
    cases = sources.phantom_cases(train=2, validation=1, spacing=(12, 12, 12))
    self.replace(monkeypatch, cases)
    return cases

  def replace(self, monkeypatch, cases):
    source = dataclasses.replace(sources.SOURCES['phantom'], cases=lambda manual_dir: cases)
    monkeypatch.setattr(sources, 'SOURCES', {'phantom': source})

  def run(self, data_dir, *options):
    required = ['--source=phantom', f'--data_dir={data_dir}', '--spacing=12', '--brick=16']
    return prepare.main([*required, *options])

  def test_prepares_once(self, small, tmp_path, capsys):
    assert self.run(tmp_path) == 0
    assert '2 train, 1 validation cases' in capsys.readouterr().out
    assert os.listdir(tmp_path) == ['phantom']
    index = tmp_path / 'phantom' / 'bricks' / bricks.VERSION / 'index.npz'
    before = index.stat().st_mtime_ns
    assert self.run(tmp_path) == 0
    assert index.stat().st_mtime_ns == before
    assert self.run(tmp_path, '--overwrite') == 0
    assert index.stat().st_mtime_ns > before
    assert len(bricks.open_volumes(tmp_path, 'phantom')) == 1

  def test_other_settings_name_overwrite(self, small, tmp_path, capsys):
    assert self.run(tmp_path, '--cases=1') == 0
    assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 1
    assert self.run(tmp_path) == 1
    assert '--overwrite' in capsys.readouterr().err
    assert self.run(tmp_path, '--overwrite') == 0
    assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 2

  def test_workers_that_leave_nothing_cost_nothing_that_is_there(
    self, small, tmp_path, monkeypatch, capsys
  ):
    assert self.run(tmp_path) == 0
    monkeypatch.setattr(preparation, '_run_beam', lambda *_, **__: None)  # their disk is another
    assert self.run(tmp_path, '--overwrite', '--spacing=10', '--beam') == 1
    assert 'of 3 of 3 cases nothing came back' in capsys.readouterr().err
    assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 2

  def test_a_broken_case_costs_only_itself(self, small, tmp_path, monkeypatch, capsys):
    def fail():
      raise volume.VolumeError('scan.nii.gz: pixdim 0 along axis 2; correct the header')

    self.replace(monkeypatch, [dataclasses.replace(small[0], load=fail), *small[1:]])
    assert self.run(tmp_path) == 1
    out, err = capsys.readouterr()
    assert '1 train, 1 validation cases' in out
    assert 'skipped phantom_liver_0000000: scan.nii.gz: pixdim 0' in err
    (info,) = bricks.open_bricks(tmp_path, 'phantom').cases
    assert info.name == small[1].name
    # Asked again, it still does not claim success.
    assert self.run(tmp_path) == 1
    self.replace(monkeypatch, [dataclasses.replace(case, load=fail) for case in small])
    assert self.run(tmp_path, '--overwrite') == 1
    assert 'every case failed' in capsys.readouterr().err
    # A failed overwrite leaves what was there.
    assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 1

  @pytest.mark.parametrize('split', ['validation', 'train'])
  def test_all_of_one_split_failing_does_not_cost_the_other(
    self, split, small, tmp_path, monkeypatch
  ):
    def fail():
      raise volume.VolumeError('scan.nii.gz: pixdim 0')

    cases = [dataclasses.replace(c, load=fail) if c.split == split else c for c in small]
    self.replace(monkeypatch, cases)
    assert self.run(tmp_path) == 1
    if split == 'train':
      with pytest.raises(bricks.NotPreparedError, match='every one was skipped, see prepare.json'):
        bricks.open_bricks(tmp_path, 'phantom')
    else:
      assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 2
    assert len(bricks.open_volumes(tmp_path, 'phantom')) == (split == 'train')

  def test_nothing_prepared_names_the_command(self, tmp_path):
    for open_ in (bricks.open_bricks, bricks.open_volumes):
      with pytest.raises(bricks.NotPreparedError, match='prepare --source=phantom'):
        open_(tmp_path, 'phantom')

  def test_killed_leaves_nothing_that_opens_and_is_resumed(self, tmp_path, capsys):
    options = ['--source=phantom', '--cases=3', f'--data-dir={tmp_path}']
    options += ['--spacing=12', '--brick=16']
    command = [sys.executable, '-m', 'input_pipeline.prepare', *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    staged = tmp_path / '.phantom.incomplete' / 'cases'
    deadline = time.monotonic() + 120
    while not list(staged.glob('*.json')) and time.monotonic() < deadline:
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in staged.glob('*.json')}
    assert finished, 'it was killed before it wrote anything'
    with pytest.raises(bricks.NotPreparedError):
      bricks.open_bricks(tmp_path, 'phantom')
    with pytest.raises(bricks.NotPreparedError):
      bricks.open_volumes(tmp_path, 'phantom')
    assert prepare.main(options) == 0
    assert f'{len(finished)} of 6 cases are converted already' in capsys.readouterr().out
    assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 3
    assert os.listdir(tmp_path) == ['phantom']

  def test_only_skipped_cases_are_made_again(self, small, tmp_path, monkeypatch, capsys):
    """Their order, records and index are those of a run without a failure."""
    assert self.run(tmp_path / 'clean') == 0
    reads = []

    def load(case, fails):
      reads.append(case.name)
      if fails:
        raise volume.VolumeError('scan.nii.gz: pixdim 0')
      return case.load()

    def cases(fails):
      return [
        dataclasses.replace(case, load=functools.partial(load, case, fails and i == 0))
        for i, case in enumerate(small)
      ]

    self.replace(monkeypatch, cases(True))
    assert self.run(tmp_path) == 1
    assert len(bricks.open_volumes(tmp_path, 'phantom')) == 1
    self.replace(monkeypatch, cases(False))
    reads.clear()
    assert self.run(tmp_path) == 0
    assert reads == [small[0].name]
    assert '2 of 3 cases are converted already' in capsys.readouterr().out
    resumed, clean = (bricks.open_bricks(d, 'phantom') for d in (tmp_path, tmp_path / 'clean'))
    assert resumed.cases == clean.cases
    np.testing.assert_array_equal(resumed.case, clean.case)
    for record in range(len(clean)):
      for a, b in zip(resumed.read(record), clean.read(record), strict=True):
        np.testing.assert_array_equal(a, b)

  def test_a_full_disk_leaves_no_half_written_case(self, small, tmp_path, monkeypatch, capsys):
    whole = shards.write_bytes

    def full(path, content):
      if path.name.endswith('.json'):
        raise OSError(28, 'No space left on device')
      whole(path, content)

    monkeypatch.setattr(shards, 'write_bytes', full)
    assert self.run(tmp_path) == 1
    assert 'cannot be written (No space left on device)' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['.phantom.incomplete']
    monkeypatch.setattr(shards, 'write_bytes', whole)
    assert self.run(tmp_path) == 0
    assert len(bricks.open_bricks(tmp_path, 'phantom').cases) == 2

  def test_another_file_under_the_same_name_is_read_again(self, tmp_path):
    file = tmp_path / 'scan.nii.gz'
    file.write_text('a')
    case = sources.Case('s', 'a', 'train', ('liver',), functools.partial(print, file))
    conversion = writer.Conversion((1.0, 1.0, 1.0), 8)
    before = conversion.key(case)
    assert conversion.key(case) == before
    assert dataclasses.replace(conversion, brick=16).key(case) != before
    assert conversion.key(dataclasses.replace(case, supervised=('spleen',))) != before
    file.write_text('another')
    assert conversion.key(case) != before

  def test_beam_writes_the_same(self, tmp_path):
    pytest.importorskip('apache_beam')
    for folder, options in (('here', []), ('beam', ['--beam=--runner=DirectRunner'])):
      assert self.run(tmp_path / folder, '--cases=1', *options) == 0
    here, beam = (
      {
        path.name: list(shards.read_records(path))
        for path in epath.Path(folder).glob('phantom/*/*/*.array_*')
      }
      for folder in (tmp_path / 'here', tmp_path / 'beam')
    )
    assert len(here) == 2
    assert here == beam

  def test_leftovers_are_cleared_and_a_second_writer_waits(self, small, tmp_path, capsys):
    (tmp_path / '.phantom.incomplete' / 'phantom' / 'bricks').mkdir(parents=True)
    (tmp_path / '.phantom.incomplete' / 'cases').mkdir()
    with staging.stage_folder(epath.Path(tmp_path), 'phantom') as folder:
      assert [path.name for path in folder.iterdir()] == ['cases']
      assert self.run(tmp_path) == 1
      assert 'another process' in capsys.readouterr().err
    assert self.run(tmp_path) == 0

  @pytest.mark.parametrize('spacing', ['0', '1,2', 'x', '1,2,-3'])
  def test_bad_spacing(self, spacing, tmp_path, capsys):
    with pytest.raises(SystemExit):
      prepare.main(['--source=phantom', f'--data_dir={tmp_path}', f'--spacing={spacing}'])
    assert '--spacing' in capsys.readouterr().err


def test_real_scans(real_data, tmp_path):
  source = sources.get_source('openkbp')
  cases = source.cases(str(real_data / 'openkbp'))
  chosen = [cases[0], cases[1], cases[-1]]
  written = writer.write(source, chosen, tmp_path, spacing=(4, 4, 3), brick=32)
  assert written.done == {'train': 2, 'validation': 1}
  assert not written.skipped
  folder = tmp_path / 'openkbp' / 'bricks' / bricks.VERSION
  store = bricks.BrickStore(folder, 'openkbp')
  for number, case in enumerate(chosen[:2]):
    counts = store.class_voxels(case.supervised)[store.case == number].sum(0)
    scan = case.load()
    labelled = TEMPLATE.code_table(case.supervised)[scan.codes].sum((0, 1, 2))
    # Nearest-neighbour resampling keeps the volume; a single organ of three voxels across may not.
    ratio = counts.sum() * 4 * 4 * 3 / (labelled.sum() * scan.geometry.spacing.prod())
    np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_the_digest_tells_other_scans_not_other_places(tiny_data, tmp_path):
  store = bricks.open_bricks(tiny_data, 'phantom')
  shutil.copytree(tiny_data / 'phantom', tmp_path / 'phantom')
  assert bricks.open_bricks(tmp_path, 'phantom').digest() == store.digest()
  (index,) = (tmp_path / 'phantom').glob(f'**/{bricks.INDEX}')
  with np.load(index) as arrays:
    content = dict(arrays)
  first = json.loads(content['cases'][0])
  first['name'] += '_of_another_patient'
  content['cases'] = np.array([json.dumps(first), *content['cases'][1:]])
  np.savez_compressed(index, **content)
  assert bricks.open_bricks(tmp_path, 'phantom').digest() != store.digest()
