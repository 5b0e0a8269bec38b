import math

import numpy as np
import pytest

from input_pipeline.batches import artefacts
from input_pipeline.ct import volume


def test_thick_slices_by_hand():
  """Slices of two: means 1 and 5 at the borders 1 and 3 of the voxels, linear between."""
  image = np.array([0, 2, 4, 6], np.float32).reshape(1, 1, 4)
  np.testing.assert_allclose(artefacts.thick_slices(image, 2.0, 0.0).ravel(), [1, 2, 4, 5])
  # From half a thick slice before the first: (0), (2, 4), (6), centred at 0.5, 2 and 3.5.
  np.testing.assert_allclose(artefacts.thick_slices(image, 2.0, 0.5).ravel(), [0, 2, 4, 6])


@pytest.mark.parametrize('thickness', [1.3, 2.0, 3.7])
def test_thick_slices_keep_what_does_not_change_along_them(thickness):
  rng = np.random.default_rng(0)
  flat = rng.normal(size=(4, 5, 1)).astype(np.float32).repeat(30, 2)
  for offset in (0.0, 0.4, 0.99):
    np.testing.assert_allclose(artefacts.thick_slices(flat, thickness, offset), flat, atol=1e-5)
    # A slope stays one, but for half a thick slice at the ends: labels do not move on it.
    slope = np.arange(30, dtype=np.float32).reshape(1, 1, 30)
    end = math.ceil(thickness / 2)
    inner = artefacts.thick_slices(slope, thickness, offset)[..., end:-end]
    np.testing.assert_allclose(inner, slope[..., end:-end], atol=1e-4)
    noise = rng.normal(size=(4, 4, 30)).astype(np.float32)
    assert artefacts.thick_slices(noise, thickness, offset).std() < 0.9 * noise.std()


def body(*, tooth: bool) -> np.ndarray:
  image = np.full((41, 41, 20), 40, np.float32)
  image[:, 35:] = volume.AIR  # padding
  if tooth:
    image[20, 20, 10] = 2500
  return image


def test_streaks_start_at_the_densest_voxel_and_fade():
  image = body(tooth=True)
  for seed in range(5):
    rng = np.random.default_rng(seed)
    added = artefacts.streaks(rng, image, 100.0, (2.0, 2.0, 3.0)) - image
    assert not added[:, 35:].any()
    # Rays are straight and as strong on the other side, half as strong at twice the distance: 10
    # and 20 voxels are 20 and 40 mm.
    middle = added[..., 10]
    np.testing.assert_allclose(middle[30, 20], middle[10, 20], atol=0.01)
    np.testing.assert_allclose(middle[40, 20], middle[30, 20] / 2, atol=0.01)
    np.testing.assert_allclose(middle[20, 10], middle[20, 30], atol=0.01)
    radius = 2 * np.hypot(*(np.indices(middle.shape) - 20))
    assert (np.abs(middle) <= 100 * 20 / np.maximum(radius, 4) + 0.01).all()
    assert np.abs(middle[np.abs(radius - 20) < 1.5]).max() > 50
    # From 3 to 12 mm to either side.
    hit = np.flatnonzero(added.any((0, 1)))
    assert 1 <= 10 - hit[0] <= 4 and hit[-1] - 10 == 10 - hit[0]
    assert added.min() < 0 < added.max()


def test_streaks_without_metal_lie_anywhere_and_leave_the_scan_alone():
  image = body(tooth=False)
  before = image.copy()
  changed = [
    artefacts.streaks(np.random.default_rng(s), image, 100.0, (2, 2, 3)) for s in (0, 0, 1)
  ]
  np.testing.assert_array_equal(image, before)
  np.testing.assert_array_equal(changed[0], changed[1])
  assert (changed[0] != changed[2]).any() and min(c.min() for c in changed) >= volume.AIR
