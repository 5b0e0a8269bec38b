"""The same scan, changed as datasets change it, is found again; other patients are not."""

import json

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import dedupe, prepare, sources
from input_pipeline.ct import resample, volume


def changes(image, spacing, rng):
  """What happens to a scan between two datasets: name -> image, spacing."""
  n, spacing = image.shape[2], np.array(spacing)
  noisy = image + rng.normal(0, 20, image.shape)
  coarse = spacing * (1.4, 1.4, 1.3)
  all_ = np.round((noisy[::-1, :, n // 4 :] + 200) / 8) * 8
  return {
    'slices cut off': (image[:, :, n // 6 : -n // 6], spacing),
    'mirrored and upside down': (image[:, ::-1, ::-1], spacing),
    'resampled': (resample.resample(image, spacing, coarse, order=1), coarse),
    'without the offset of HU': (image + 1024, spacing),
    'compressed': (np.round(noisy / 16) * 16, spacing),
    'all of it': (resample.resample(all_, spacing, spacing * 1.3, order=1), spacing * 1.3),
  }


def test_changed_real_scans_are_found_and_no_others(real_data):
  paths = sorted((real_data / 'openkbp' / 'train').glob('*_ct.nii.gz'))[::32]
  paths += sorted((real_data / 'ibsi_sts').glob('*_CT_image.nii.gz'))[:2]
  paths.append(real_data / 'totalsegmentator' / 'example_ct.nii.gz')
  rng = np.random.default_rng(0)
  prints = {}
  for number, path in enumerate(paths):
    name = path.name.split('.')[0]
    scan = volume.read_image(path)
    prints['a', name] = dedupe.fingerprint(scan.array, scan.spacing)
    # Each patient is in the other dataset in two forms.
    forms = list(changes(scan.array, scan.spacing, rng).items())
    for kind, changed in (forms[number % len(forms)], forms[(number + 3) % len(forms)]):
      prints['b', f'{name} {kind}'] = dedupe.fingerprint(*changed)
  groups = dedupe.find_groups(prints)
  patients = [{key[1].split(' ')[0] for key in group} for group in groups]
  assert all(len(patient) == 1 for patient in patients)
  found = sum(len(group) - 1 for group in groups)
  # One may be missed: little is left of a fragment that was cut, resampled and compressed.
  assert found >= 2 * len(paths) - 1


def test_profiles_align_cut_and_turned_scans():
  rng = np.random.default_rng(1)
  profile = rng.uniform(50, 100, (40, 3)).astype(np.float32)
  others = [profile, profile[10:], profile[:22], profile[::-1][5:30], profile * 1.2]
  found = dedupe.profile_distances(profile, others)
  np.testing.assert_allclose(found[:4], 0, atol=1e-6)
  # 20 % more everywhere, by the definition; another alignment may only be nearer.
  x = profile.astype(float)
  square = (0.2 * x) ** 2 @ (1, 0.25, 1)
  assert 0.05 < found[4] <= np.sqrt(square.sum() / (((1 + 1.44) * x[:, 0] ** 2).sum() / 2)) + 1e-6


def test_a_scan_of_one_value_is_refused():
  with pytest.raises(ValueError, match='no scan'):
    dedupe.fingerprint(np.zeros((8, 8, 8)), (1, 1, 1))


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
  assert [c.split for c in dedupe.keep_together(cases, [group])] == ['test']
  command = ['--source=amos22', f'--manual-dir={amos}', f'--data-dir={tmp_path / "data"}']
  assert prepare.main([*command, '--spacing=6', '--brick=16', f'--groups={output}']) == 0
  assert '1 test cases' in capsys.readouterr().out
  # Without the file, the scan would go back to training.
  assert prepare.main([*command, '--spacing=6', '--brick=16']) == 1
  assert 'prepared with --groups; pass the file again' in capsys.readouterr().err
  output.write_text('{}')
  assert prepare.main([*command, '--spacing=6', '--brick=16', f'--groups={output}']) == 1
  assert 'groups.json: not a file of input_pipeline.dedupe' in capsys.readouterr().err


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
  # A file of before this was noted is used, with a note.
  content = json.loads((tmp_path / 'groups.json').read_text())
  (tmp_path / 'groups.json').write_text(json.dumps({'groups': content['groups']}))
  assert prepare.main(command) == 0
  assert 'does not say which scans were compared' in capsys.readouterr().err


def test_wrong_downloads_are_named(tmp_path, capsys):
  with pytest.raises(SystemExit):
    dedupe.main(['--download=nothing', f'--output={tmp_path}/x'])
  assert 'SOURCE=FOLDER' in capsys.readouterr().err
  assert dedupe.main([f'--download=lits={tmp_path}', f'--output={tmp_path}/x']) == 1
  assert 'no scan of lits' in capsys.readouterr().err
