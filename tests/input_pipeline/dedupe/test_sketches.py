"""The quick look at pairs of scans: what may be the same is never passed over for being turned."""

import numpy as np
import pytest
from scipy import ndimage

from input_pipeline.dedupe import fingerprint, fingerprint_store, sketches


def body(seed, shape=(40, 30, 44)):
  """A made-up patient: an ellipse of its own width and depth, tissue in large lumps."""
  rng = np.random.default_rng(seed)
  x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing='ij')
  mask = (x / rng.uniform(0.6, 1)) ** 2 + (y / rng.uniform(0.6, 1)) ** 2 < 1
  tissue = ndimage.gaussian_filter(rng.normal(size=shape), 6)
  values = np.where(mask, 150 * tissue / tissue.std(), 0).clip(-150, 250).astype(np.float32)
  return values, mask


def near(*scans):
  return sketches.Sketches([sketches.sketch(*scan) for scan in scans]).near(0).tolist()


def changed(scan, change):
  return tuple(np.ascontiguousarray(change(part)) for part in scan)


@pytest.mark.parametrize(
  'change',
  [
    lambda a: a,
    lambda a: a[::-1],
    lambda a: a[:, ::-1],
    lambda a: a[:, :, ::-1],
    lambda a: a[::-1, ::-1, ::-1],
    lambda a: a[:, :, 5:],
    lambda a: a[:, :, 3:30],
    lambda a: a[::-1, :, 26:4:-1],
  ],
)
def test_turned_and_cut_scans_are_near(change):
  scan = body(0)
  assert near(scan, changed(scan, change)) == [1]


def test_other_patients_are_not():
  assert near(*map(body, range(8))) == []


@pytest.mark.parametrize('thickness', range(1, 9))
def test_thin_scans_are_compared_as_any(thickness):
  """Of fewer slices than a block as well: found beside itself, and no trouble to others."""
  scan, other = body(0, (40, 30, thickness)), body(1)
  assert near(scan, other, changed(scan, lambda a: a[::-1]))[-1:] == [2]
  assert near(other, scan) == []


def test_all_later_scans_are_looked_at(monkeypatch):
  monkeypatch.setattr(sketches, '_ROWS', 3)
  scans = [body(seed) for seed in (0, 1, 2, 0, 3, 0)]
  search = sketches.Sketches([sketches.sketch(*scan) for scan in scans])
  assert [search.near(i).tolist() for i in range(6)] == [[3, 5], [], [], [5], [], []]


def test_a_sketch_by_hand():
  """One voxel of 100 HU in the middle of a body: its cell of 8 x 8 voxels has a mean of 1 / 64."""
  values, mask = np.zeros((31, 31, 1), np.float32), np.ones((31, 31, 1), bool)
  values[15, 15] = 100
  cells = sketches.sketch(values, mask).reshape(2, 6, 6)
  assert cells[0, 0, 0] == pytest.approx(1 / 64)
  assert cells[0].sum() == cells[0, 0, 0]
  # Voxels 0 to 3 from the middle are the first cell: 7 a side.
  assert cells[1, 0, 0] == pytest.approx(49 / 64) and cells[1, 1, 0] == pytest.approx(56 / 64)


def test_packed_fingerprints_come_back():
  store = fingerprint_store.FingerprintStore()
  scans = {
    ('a', str(seed)): fingerprint.Fingerprint(*body(seed), np.ones((44, 3))) for seed in (0, 1)
  }
  for key, scan in scans.items():
    store.add(key, scan)
  assert list(store) == list(scans) and len(store) == 2
  for key, scan in scans.items():
    np.testing.assert_array_equal(store[key].body, scan.body)
    np.testing.assert_array_equal(store[key].values, np.round(scan.values))
    np.testing.assert_array_equal(store[key].profile, scan.profile)
  assert fingerprint.find_groups(store) == []
  store.add(('b', 'again'), scans['a', '1'])
  assert fingerprint.find_groups(store) == [[('a', '1'), ('b', 'again')]]
  store.close()
