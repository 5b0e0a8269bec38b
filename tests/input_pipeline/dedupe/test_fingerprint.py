"""The same scan, changed as datasets change it, is found again; other patients are not."""

import numpy as np
import pytest

from input_pipeline.ct import resample, volume
from input_pipeline.dedupe import fingerprint


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
  paths = sorted((real_data / 'openkbp' / 'train').glob('*_ct.nii.gz'))[::64]
  paths += sorted((real_data / 'ibsi_sts').glob('*_CT_image.nii.gz'))[:1]
  paths.append(real_data / 'totalsegmentator' / 'example_ct.nii.gz')
  rng = np.random.default_rng(0)
  prints = {}
  for number, path in enumerate(paths):
    name = path.name.split('.')[0]
    scan = volume.read_image(path)
    prints['a', name] = fingerprint.fingerprint(scan.array, scan.spacing)
    # Each patient is in the other dataset in two forms.
    forms = list(changes(scan.array, scan.spacing, rng).items())
    for kind, changed in (forms[number % len(forms)], forms[(number + 3) % len(forms)]):
      prints['b', f'{name} {kind}'] = fingerprint.fingerprint(*changed)
  groups = fingerprint.find_groups(prints)
  patients = [{key[1].split(' ')[0] for key in group} for group in groups]
  assert all(len(patient) == 1 for patient in patients)
  again = sum(len(group) - 1 for group in groups)
  # One may be missed: little is left of a fragment that was cut, resampled and compressed.
  assert again >= 2 * len(paths) - 1


def test_profiles_align_cut_and_turned_scans():
  rng = np.random.default_rng(1)
  profile = rng.uniform(50, 100, (40, 3)).astype(np.float32)
  others = [profile, profile[10:], profile[:22], profile[::-1][5:30], profile * 1.2]
  distances = fingerprint.profile_distances(profile, others)
  np.testing.assert_allclose(distances[:4], 0, atol=1e-6)
  # 20 % more everywhere, by the definition; another alignment may only be nearer.
  x = profile.astype(float)
  square = (0.2 * x) ** 2 @ (1, 0.25, 1)
  assert (
    0.05 < distances[4] <= np.sqrt(square.sum() / (((1 + 1.44) * x[:, 0] ** 2).sum() / 2)) + 1e-6
  )


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('voxels', [1, 2, 3])
def test_thin_bodies_are_compared(voxels, axis):
  """Two voxels are one at half the resolution; of one there is nothing left to find it by."""
  rng = np.random.default_rng(voxels)
  shape = np.array((20, 16, 12))
  whole = rng.uniform(-100, 100, shape).astype(np.float32)
  shape[axis] = voxels
  values = whole[tuple(map(slice, shape))]
  a, b = (
    fingerprint.Fingerprint(v, np.ones(v.shape, bool), np.ones((v.shape[2], 3)))
    for v in (values, whole)
  )
  assert fingerprint.correlation(a, a) == pytest.approx(1 if voxels > 1 else -1)
  assert fingerprint.correlation(a, b) == pytest.approx(fingerprint.correlation(b, a), abs=1e-3)
  assert fingerprint.correlation(b, b) == pytest.approx(1)


def test_a_scan_of_one_value_is_refused():
  with pytest.raises(ValueError, match='no scan'):
    fingerprint.fingerprint(np.zeros((8, 8, 8)), (1, 1, 1))
