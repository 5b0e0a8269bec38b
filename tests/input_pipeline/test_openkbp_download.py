import json
import subprocess

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import openkbp_download, sources
from input_pipeline.anatomy import TEMPLATE


def write_csv(path, mask, values=None):
  at = np.flatnonzero(mask)
  cells = [''] * len(at) if values is None else values.ravel()[at]
  rows = ''.join(f'{i},{v}\n' for i, v in zip(at, cells, strict=True))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(',data\n' + rows)


def uncrop(path):
  """A converted image on the 128^3 grid of its source, whose centre is the world's origin."""
  image = nib.load(path)
  array = np.asarray(image.dataobj)
  start = np.rint(63.5 - np.linalg.inv(image.affine)[:3, 3]).astype(int)
  return array, tuple(slice(s, s + n) for s, n in zip(start, array.shape, strict=True))


@pytest.fixture(scope='module')
def original(real_data, tmp_path_factory):
  """Two real patients put back into the original CSV files."""
  root = tmp_path_factory.mktemp('original')
  for split, name in (('train', 'train-pats'), ('val', 'validation-pats')):
    folder = real_data / 'openkbp' / split
    entries = json.loads((folder / 'dataset.json').read_text())['cases']
    entry = next(e for e in entries if not e['blanked_slices'] and not e['overlap_voxels'])
    patient = root / 'provided-data' / name / entry['id']
    ct, box = uncrop(folder / entry['ct'])
    stored = np.zeros((128,) * 3, int)
    stored[box] = ct.astype(int) + 1000
    write_csv(patient / 'ct.csv', stored > 0, stored)
    oar, _ = uncrop(folder / entry['oar'])
    for organ in entry['labelled_organs']:
      mask = np.zeros((128,) * 3, bool)
      mask[box] = oar == sources.openkbp.ORGANS[organ][0]
      write_csv(patient / f'{organ}.csv', mask)
    mask = np.zeros((128,) * 3, bool)
    mask[box] = np.asarray(nib.load(folder / entry['ptv']).dataobj) == 70
    write_csv(patient / 'PTV70.csv', mask)
    s = entry['spacing_mm']
    (patient / 'voxel_dimensions.csv').write_text('\n'.join(map(str, (s[1], s[0], s[2]))))
  return root


def test_some_patients_only(original, tmp_path, capsys):
  validation = next(original.glob('**/validation-pats/*')).name
  arguments = [f'--output={tmp_path}', f'--original={original}']
  assert openkbp_download.main([*arguments, f'--patients={validation}']) == 0
  assert [path.name for path in tmp_path.glob('*/*_ct.nii.gz')] == [f'{validation}_ct.nii.gz']
  assert openkbp_download.main([*arguments, '--patients=pt_9999']) == 1
  assert 'no pt_9999 in it' in capsys.readouterr().err
  training = next(original.glob('**/train-pats/*')).name
  assert openkbp_download.main([*arguments, f'--patients={training}']) == 1
  assert f'lists 1 other patients, such as {validation}' in capsys.readouterr().err


def test_csv_files_give_what_the_converted_ones_give(original, real_data, tmp_path):
  assert openkbp_download.main([f'--output={tmp_path}', f'--original={original}']) == 0
  known = {c.name: c for c in sources.get_source('openkbp').cases(str(real_data / 'openkbp'))}
  cases = sources.get_source('openkbp').cases(str(tmp_path))
  assert {case.split for case in cases} == {'train', 'validation'}
  for case in cases:
    assert case.supervised == known[case.name].supervised
    ours, theirs = case.load(), known[case.name].load()
    np.testing.assert_allclose(ours.geometry.spacing, theirs.geometry.spacing, atol=1e-4)
    offset = np.linalg.inv(ours.geometry.canonical_affine) @ theirs.geometry.canonical_affine[:, 3]
    start = np.rint(offset[:3]).astype(int)
    box = tuple(slice(s, s + n) for s, n in zip(start, theirs.codes.shape, strict=True))
    np.testing.assert_array_equal(ours.image[box], theirs.image)
    np.testing.assert_array_equal(ours.codes[box], theirs.codes)
    assert (ours.codes > 0).sum() == (theirs.codes > 0).sum()
    for name, heights in known[case.name].slice_ranges.items():
      np.testing.assert_allclose(case.slice_ranges[name], heights, atol=1e-3)
  (ptv, *_) = sources.get_source('openkbp_ptv').cases(str(tmp_path))
  assert ptv.load().codes.max() == 39


def test_blanked_slices_lose_scan_and_labels(tmp_path):
  hu = np.full((128,) * 3, -1000, np.int16)
  hu[20:100, 20:100, 30:90] = 40
  cord = np.zeros(hu.shape, bool)
  cord[60:64, 60:64, 20:100] = True
  hu[58:66, 58:66, 20:30] = 30  # only around the cord
  blank = openkbp_download.blanked_slices(hu, cord)
  np.testing.assert_array_equal(np.flatnonzero(blank), range(20, 30))
  patient = tmp_path / 'train-pats' / 'pt_1'
  write_csv(patient / 'ct.csv', hu > -1000, hu.astype(int) + 1000)
  write_csv(patient / 'SpinalCord.csv', cord)
  larynx = np.zeros(hu.shape, bool)
  larynx[60:66, 60:66, 24:31] = True  # six of seven slices are blanked
  write_csv(patient / 'Larynx.csv', larynx)
  (patient / 'voxel_dimensions.csv').write_text('4\n4\n3\n')
  openkbp_download.convert(tmp_path, tmp_path / 'out')
  (tmp_path / 'out' / 'val').mkdir(exist_ok=True)
  (case,) = sources.get_source('openkbp').cases(str(tmp_path / 'out'))
  assert case.labelled == ('spinal cord',)
  scan = case.load()
  # Slices run from the head down; the canonical axis from the feet up.
  cord_heights = np.flatnonzero((scan.codes == TEMPLATE.get('spinal cord').index).any((0, 1)))
  np.testing.assert_array_equal(cord_heights, range(127 - 99, 127 - 29))
  assert (scan.image[..., 127 - 29 : 127 - 19] == -1000).all()


def test_damaged_files_are_named(tmp_path, capsys):
  patient = tmp_path / 'train-pats' / 'pt_1'
  write_csv(patient / 'ct.csv', np.ones(3, bool), np.ones(3, int))
  assert openkbp_download.main([f'--output={tmp_path}/o', f'--original={tmp_path}']) == 1
  assert 'voxel_dimensions.csv: expected three mm' in capsys.readouterr().err
  (patient / 'voxel_dimensions.csv').write_text('4\n4\n3\n')
  (patient / 'ct.csv').write_text(',data\n12,5\nx,7\n')
  assert openkbp_download.main([f'--output={tmp_path}/o', f'--original={tmp_path}']) == 1
  assert 'ct.csv: not a sparse CSV file' in capsys.readouterr().err
  (patient / 'ct.csv').write_text(f',data\n{128**3},5\n')
  assert openkbp_download.main([f'--output={tmp_path}/o', f'--original={tmp_path}']) == 1
  assert 'outside 128^3' in capsys.readouterr().err
  (patient / 'ct.csv').write_text(',data\n12,5\n')
  (patient / 'Larynx.csv').symlink_to('annex/gone')  # contoured, and not there
  assert openkbp_download.main([f'--output={tmp_path}/o', f'--original={tmp_path}']) == 1
  assert 'Larynx.csv: not a sparse CSV file ([Errno 2]' in capsys.readouterr().err


def test_a_conversion_that_is_ended_leaves_the_earlier_one(tmp_path, monkeypatch):
  def end(image, path):
    path.write_bytes(b'half')
    raise KeyboardInterrupt

  patient = tmp_path / 'in' / 'train-pats' / 'pt_1'
  body = np.zeros((128,) * 3, bool)
  body[40:44, 40:44, 40:44] = True
  write_csv(patient / 'ct.csv', body, np.full(body.shape, 1040))
  write_csv(patient / 'Brainstem.csv', body)
  (patient / 'voxel_dimensions.csv').write_text('3\n3\n2.5')
  openkbp_download.convert(tmp_path / 'in', tmp_path / 'out')
  before = {path: path.read_bytes() for path in (tmp_path / 'out' / 'train').iterdir()}
  assert len(before) == 3
  monkeypatch.setattr(nib, 'save', end)
  with pytest.raises(KeyboardInterrupt):
    openkbp_download.convert(tmp_path / 'in', tmp_path / 'out')
  assert {path: path.read_bytes() for path in (tmp_path / 'out' / 'train').iterdir()} == before


def test_fetch_takes_the_pinned_commit_only(tmp_path):
  served = tmp_path / 'served'
  patient = served / 'provided-data/train-pats/pt_1'
  patient.mkdir(parents=True)

  def git(*words):
    done = subprocess.run(['git', *words], cwd=served, check=True, capture_output=True, text=True)
    return done.stdout.strip()

  git('init', '--quiet')
  git('config', 'user.email', 'a@b')
  git('config', 'user.name', 'a')
  git('config', 'uploadpack.allowFilter', 'true')
  git('config', 'uploadpack.allowAnySHA1InWant', 'true')
  for name in ('ct.csv', 'dose.csv'):
    (patient / name).write_text(',data\n1,2\n')
  git('add', '.')
  git('commit', '--quiet', '-m', 'one')
  pinned = git('rev-parse', 'HEAD')
  (patient / 'ct.csv').write_text(',data\n1,3\n')
  git('commit', '--quiet', '-am', 'two')
  for _ in range(2):  # a second time continues
    openkbp_download.fetch(tmp_path / 'copy', f'file://{served}', pinned)
    patient = tmp_path / 'copy/provided-data/train-pats/pt_1'
    assert (patient / 'ct.csv').read_text() == ',data\n1,2\n'
    assert not (patient / 'dose.csv').exists()
  with pytest.raises(sources.SourceError, match='git fetch of file:.* failed'):
    openkbp_download.fetch(tmp_path / 'other', f'file://{served}', '0' * 40)
